// What the kernels say to each other and to Python (native.py, native_attention.py, fused.py mirror the structures).
#pragma once

#include <cstdint>

#include "vectors.h"

extern "C" {
// Fixed for a layer of an engine.
struct Layer {
    void* keys;
    void* values;
    long heads, kv_heads, key_dim, value_dim;
    long window;  // the latest positions a row sees, itself included; 0 is all
    double scaling, softcap;  // softcap 0 is none
    const void *query_norm, *key_norm;  // RMSNorms [key_dim] of each head before rotation, or null
    double eps;
    long whole;  // rows see all rows of their tile, not only those before them
};

// Fixed for a step. A tile is consecutive rows of one session: {first row, rows, position of the first, its pages'
// place in `pages`}. A session's pages are padded with page 0 to whole blocks.
struct Step {
    const int64_t* tiles;
    const int64_t* pages;
    long count;
    long threads;
};

// Weights packed as weights.h says, and what goes with them; a null bias is none.
struct Linear {
    const void* weights;
    const bf16* scales;  // [panels, groups, 1 or 2, 32]: see weights.h; null where there are none
    const bf16* bias;    // [outputs]
    long bits;           // of a weight: 16 is bfloat16; 8 and 4 are integers
    long group;          // inputs of a group; the last one may have fewer
};

// One layer's inputs: row r, head h begins at r * row stride + h * head stride.
struct Inputs {
    const void *query, *key, *value;
    long query_row, query_head, key_row, key_head, value_row, value_head;
    const void *cos, *sin;  // [rows, key_dim] to rotate by, or null
    void* rotated;          // [rows, heads, key_dim], room for rotated queries; unused without cos
    void* out;              // [rows, heads, value_dim]
};
}

// To be called by every thread of a team; each ends in a barrier.
void product(const bf16* x, const Linear& l, const bf16* residual, bf16* out, long rows, long k, long n);
void norm(const bf16* x, const bf16* weight, float eps, bf16* out, long rows, long width);
void gate(const bf16* both, bf16* out, long rows, long width);
void attend(const Layer& l, const Step& s, const Inputs& in);
void write(const Layer& l, const Step& s, const Inputs& in);  // its keys and values only; no queries are looked at
