// How packed weights become bfloat16, a pair of inputs for a panel of 32 outputs at a time: the lanes of two vectors,
// [32][2]. Integers up to 8 bits are bfloat16 exactly, so a product of unpacked integers rounds nothing.
//
// A panel is read once, front to back. native.py packs.
#pragma once

#include "vectors.h"

#ifdef __AVX512BF16__
constexpr int PANEL = 32;

// bfloat16: [in / 2][32][2].
struct Bfloat16Weights {
    static constexpr int PAIRS = 1, BYTES = 128;  // unpacked at once
    static constexpr int SCALES = 0;  // of a group of inputs

    void unpack(const uint8_t* at, __m512bh (&pairs)[PAIRS][2]) const {
        pairs[0][0] = (__m512bh)_mm512_loadu_si512(at);
        pairs[0][1] = (__m512bh)_mm512_loadu_si512(at + 64);
    }
};

#ifdef __AVX512VBMI__
// Integers of -127 to 127 as a sign bit and 7 bits: [in / 2][64], in the order that interleaving two tables' bytes
// makes [32][2] of.
struct Int8Weights {
    static constexpr int PAIRS = 1, BYTES = 64;
    static constexpr int SCALES = 1;
    __m512i low[2], high[2];  // bytes of the bfloat16 of 0 to 127

    Int8Weights() {
        alignas(64) uint8_t lows[128], highs[128];
        for (int i = 0; i < 128; i++) {
            const float number = float(i);
            uint32_t bits;
            std::memcpy(&bits, &number, sizeof bits);
            lows[i] = uint8_t(bits >> 16), highs[i] = uint8_t(bits >> 24);
        }
        for (int half = 0; half < 2; half++) {
            low[half] = _mm512_load_si512(lows + 64 * half);
            high[half] = _mm512_load_si512(highs + 64 * half);
        }
    }

    void unpack(const uint8_t* at, __m512bh (&pairs)[PAIRS][2]) const {
        const __m512i bytes = _mm512_loadu_si512(at);
        const __m512i lows = _mm512_permutex2var_epi8(low[0], bytes, low[1]);  // the sign bit is no part of an index
        const __m512i sized = _mm512_permutex2var_epi8(high[0], bytes, high[1]);
        const __m512i highs = _mm512_ternarylogic_epi32(sized, bytes, _mm512_set1_epi8(-128), 0xF8);  // a | (b & c)
        pairs[0][0] = (__m512bh)_mm512_unpacklo_epi8(lows, highs);
        pairs[0][1] = (__m512bh)_mm512_unpackhi_epi8(lows, highs);
    }
};

// Integers of 0 to 15: [in / 4][32] words of four: of two pairs of inputs, outputs 0 to 15 and 16 to 31.
struct Int4Weights {
    static constexpr int PAIRS = 2, BYTES = 64;
    static constexpr int SCALES = 2;  // what the integers are multiplied by, and what is added to each then
    __m512i table;  // the 16 numbers, twice: an index is 5 bits, and what follows a weight in its word does not matter

    Int4Weights() {
        alignas(64) uint16_t words[32];
        for (int i = 0; i < 32; i++) {
            const float number = float(i % 16);
            uint32_t bits;
            std::memcpy(&bits, &number, sizeof bits);
            words[i] = uint16_t(bits >> 16);
        }
        table = _mm512_load_si512(words);
    }

    void unpack(const uint8_t* at, __m512bh (&pairs)[PAIRS][2]) const {
        const __m512i words = _mm512_loadu_si512(at);
        pairs[0][0] = (__m512bh)_mm512_permutexvar_epi16(words, table);
        pairs[0][1] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), table);
        pairs[1][0] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 8), table);
        pairs[1][1] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words, 12), table);
    }
};
#endif
#endif
