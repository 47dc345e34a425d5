// Llama's decoder layers, one after the other, by one team of threads that is formed once.
#include "kernels.h"

#ifdef __AVX512BF16__
extern "C" {
struct Decoder {
    Layer attention;
    Linear inward, outward, widen, narrow;  // q, k, v together; o; gate and up together; down
    const bf16 *norms[2];                   // before attention, before the gate
    double eps[2];
    long width, inner;
};

// One layer's part in what a drafter reads: keys and values, side by side, of context features.
struct Injected {
    Layer attention;
    Linear inward;
};

// x: [rows, width]; cos, sin: [rows, key_dim]; room: [rows, 2 * kv_heads * key_dim].
void paceline_inject(const Injected* layers, long count, const Step* step, const bf16* x, const bf16* cos,
                     const bf16* sin, bf16* room, long rows, long width) {
#pragma omp parallel num_threads(step->threads)
    for (long i = 0; i < count; i++) {
        const Layer& a = layers[i].attention;
        const long keys = a.kv_heads * a.key_dim;
        product(x, layers[i].inward, nullptr, room, rows, width, 2 * keys);
        const Inputs inputs{nullptr, room,      room + keys, 0,   0,   2 * keys, a.key_dim,
                            2 * keys, a.key_dim, cos,         sin, nullptr, nullptr};
        write(a, *step, inputs);
    }
}

// x: [rows, width], changed in place; cos, sin: [rows, key_dim]; room: [rows, width + (3 * heads + 2 * kv_heads) ·
// key_dim + 3 * inner].
void paceline_layers(const Decoder* decoders, long count, const Step* step, bf16* x, const bf16* cos, const bf16* sin,
                     bf16* room, long rows) {
#pragma omp parallel num_threads(step->threads)
    for (long i = 0; i < count; i++) {
        const Decoder& d = decoders[i];
        const Layer& a = d.attention;
        const long queries = a.heads * a.key_dim, keys = a.kv_heads * a.key_dim, packed = queries + 2 * keys;
        bf16 *normed = room, *inward = normed + rows * d.width, *rotated = inward + rows * packed;
        bf16 *attended = rotated + rows * queries, *both = attended + rows * queries, *gated = both + rows * 2 * d.inner;
        norm(x, d.norms[0], float(d.eps[0]), normed, rows, d.width);
        product(normed, d.inward, nullptr, inward, rows, d.width, packed);
        const Inputs inputs{inward,    inward + queries, inward + queries + keys, packed, a.key_dim, packed, a.key_dim,
                            packed,    a.key_dim,        cos,                     sin,    rotated,   attended};
        attend(a, *step, inputs);
        product(attended, d.outward, x, x, rows, queries, d.width);
        norm(x, d.norms[1], float(d.eps[1]), normed, rows, d.width);
        product(normed, d.widen, nullptr, both, rows, d.width, 2 * d.inner);
        gate(both, gated, rows, d.inner);
        product(gated, d.narrow, x, x, rows, d.inner, d.width);
    }
}
}
#endif
