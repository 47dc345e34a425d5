// A token per row: the likeliest, or one drawn from softmax(logits / temperature) by the race of
// paceline.speculation (noise.py, sampling.py), looking only into blocks that can hold the winner.
#include <vector>

#include "kernels.h"

namespace {

constexpr long BLOCK = 128;       // noise.BLOCK
constexpr double MARGIN = 1e-9;   // sampling._MARGIN
constexpr long NOT_FINITE = -1;

struct Words {
    uint32_t a, b, c, d;
};

// Philox 4×32-10 (Salmon et al., SC 2011).
Words philox(Words w, uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        const uint64_t first = uint64_t(w.a) * 0xD2511F53u, second = uint64_t(w.c) * 0xCD9E8D57u;
        w = {uint32_t(second >> 32) ^ w.b ^ k0, uint32_t(second), uint32_t(first >> 32) ^ w.d ^ k1, uint32_t(first)};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return w;
}

// The noise of one row, in the target's stream.
struct Noise {
    uint32_t k0, k1, position, choice;

    Words words(long index, uint32_t level) const { return philox({uint32_t(index), position, choice, level}, k0, k1); }
};

struct Least {
    double value;  // of a block's exponentials
    long offset;   // which token has it
};

Least least(const Noise& noise, long block) {
    const Words w = noise.words(block, 0);
    const uint64_t bits = (uint64_t(w.a) << 21) | (w.b >> 11);
    const double uniform = (double(bits) + 0.5) * 0x1p-53;
    return {-std::log1p(-uniform) / double(BLOCK), long(w.c & (BLOCK - 1))};
}

double seen(float x) { return x; }
double seen(bf16 x) {
    const uint32_t bits = uint32_t(x) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

// The largest of some logits; false if one is NaN.
template <class T> bool peak_of(const T* logits, long count, float& peak) {
    __m512 top = _mm512_set1_ps(-INFINITY);
    __mmask16 broken = 0;
    for (long i = 0; i < count; i += LANES) {
        const __mmask16 lanes = first_lanes(count - i);
        const __m512 x = load(logits + i, lanes);
        broken |= _mm512_mask_cmp_ps_mask(lanes, x, x, _CMP_UNORD_Q);
        top = _mm512_mask_max_ps(top, lanes, top, x);
    }
    peak = _mm512_reduce_max_ps(top);
    return !broken;
}

template <class T> struct Race {
    const T* logits;
    long vocab;
    double temperature;
    Noise noise;
    double best = -INFINITY;
    long winner = NOT_FINITE;

    void look(long block, const Least& l) {
        const long first = block * BLOCK, end = vocab < first + BLOCK ? vocab : first + BLOCK;
        for (long quad = first; quad < end; quad += 4) {
            const Words w = noise.words(quad / 4, 1);
            const uint32_t words[] = {w.a, w.b, w.c, w.d};
            for (long token = quad; token < quad + 4 && token < end; token++) {
                const double uniform = (double(words[token - quad]) + 0.5) * 0x1p-32;
                const double e = token - first == l.offset ? l.value : l.value - std::log1p(-uniform);
                const double score = seen(logits[token]) / temperature - std::log(e);
                if (score > best || (score == best && token < winner)) best = score, winner = token;
            }
        }
    }
};

template <class T> long draw_row(const T* logits, long vocab, double temperature, const Noise& noise) {
    const long blocks = (vocab + BLOCK - 1) / BLOCK;
    std::vector<float> peaks(blocks);
    float top = -INFINITY;
    for (long b = 0; b < blocks; b++) {
        const long count = vocab - b * BLOCK < BLOCK ? vocab - b * BLOCK : BLOCK;
        if (!peak_of(logits + b * BLOCK, count, peaks[b])) return NOT_FINITE;
        top = peaks[b] > top ? peaks[b] : top;
    }
    if (!std::isfinite(top)) return NOT_FINITE;
    if (temperature == 0) {
        long token = 0;
        while (peaks[token / BLOCK] != top) token += BLOCK;
        while (seen(logits[token]) != double(top)) token++;
        return token;
    }
    std::vector<Least> minima(blocks);
    std::vector<double> bounds(blocks);
    long first = 0;
    for (long b = 0; b < blocks; b++) {
        minima[b] = least(noise, b);
        bounds[b] = double(peaks[b]) / temperature - std::log(minima[b].value);
        first = bounds[b] > bounds[first] ? b : first;
    }
    Race<T> race{logits, vocab, temperature, noise};
    race.look(first, minima[first]);
    for (long b = 0; b < blocks; b++) {
        if (b != first && bounds[b] + MARGIN >= race.best) race.look(b, minima[b]);
    }
    return race.winner;
}

template <class T>
void draw(const T* logits, const int64_t* places, const double* temperatures, int64_t* tokens, long rows, long vocab,
          long threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (rows > 1)
    for (long r = 0; r < rows; r++) {
        const int64_t* place = places + 4 * r;
        const Noise noise{uint32_t(place[0]), uint32_t(place[1]), uint32_t(place[2]), uint32_t(place[3])};
        tokens[r] = draw_row(logits + r * vocab, vocab, temperatures[r], noise);
    }
}

}  // namespace

// logits: [rows, vocab]; places: [rows, 4], low and high word of the seed, position, choice; tokens: [rows], -1 where
// the logits hold NaN or no finite maximum. A temperature of 0 takes the likeliest token, the lowest of equals.
extern "C" void paceline_draw_float32(const float* logits, const int64_t* places, const double* temperatures,
                                      int64_t* tokens, long rows, long vocab, long threads) {
    draw(logits, places, temperatures, tokens, rows, vocab, threads);
}

extern "C" void paceline_draw_bfloat16(const bf16* logits, const int64_t* places, const double* temperatures,
                                       int64_t* tokens, long rows, long vocab, long threads) {
    draw(logits, places, temperatures, tokens, rows, vocab, threads);
}
