// A token per row: the likeliest, or one drawn from softmax(logits / temperature), cut or whole, by the race of
// paceline.speculation (noise.py, sampling.py, cutting.py), looking only into blocks that can hold the winner.
//
// What top-k, top-p and min-p leave is a beginning of the tokens by likelihood. So a race is run among all; if its winner
// is left over, it is the winner among those that are; if not, neither are the tokens behind it, and the race is run
// again among those before it. Nothing is sorted.
#include <algorithm>
#include <functional>
#include <vector>

#include "kernels.h"

namespace {

constexpr long BLOCK = 128;       // noise.BLOCK
constexpr double MARGIN = 1e-9;   // sampling._MARGIN
constexpr long NOT_FINITE = -1;
constexpr long UNSURE = -2;         // so near to where top-p or min-p cut that rounding may decide
constexpr double ROUNDING = 1e-6;   // relative: ten times what sums of 32-bit exponentials may differ by

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

// Tokens by likelihood, the lowest of equals first; those before one of them.
struct Before {
    const float* scaled;  // null: all tokens
    long token;

    __mmask16 lanes(long first, __mmask16 lanes) const {
        if (!scaled) return lanes;
        const __m512 own = _mm512_set1_ps(scaled[token]), x = load(scaled + first, lanes);
        const __mmask16 lower = first >= token ? 0 : first_lanes(token - first);
        return _mm512_mask_cmp_ps_mask(lanes, x, own, _CMP_GT_OQ) |
               (_mm512_mask_cmp_ps_mask(lanes, x, own, _CMP_EQ_OQ) & lower);
    }
    bool has(long other) const {
        return !scaled || scaled[other] > scaled[token] || (scaled[other] == scaled[token] && other < token);
    }
};

template <class T> struct Race {
    const T* logits;
    long vocab;
    double temperature;
    Noise noise;
    Before before;
    double best = -INFINITY;
    long winner = NOT_FINITE;

    void look(long block, const Least& l) {
        const long first = block * BLOCK, end = vocab < first + BLOCK ? vocab : first + BLOCK;
        for (long quad = first; quad < end; quad += 4) {
            const Words w = noise.words(quad / 4, 1);
            const uint32_t words[] = {w.a, w.b, w.c, w.d};
            for (long token = quad; token < quad + 4 && token < end; token++) {
                if (!before.has(token)) continue;
                const double uniform = (double(words[token - quad]) + 0.5) * 0x1p-32;
                const double e = token - first == l.offset ? l.value : l.value - std::log1p(-uniform);
                const double score = seen(logits[token]) / temperature - std::log(e);
                if (score > best || (score == best && token < winner)) best = score, winner = token;
            }
        }
    }
};

// The winner among the tokens before another. peaks: the largest logit of each block's, -inf of blocks that have none.
template <class T>
long race_for(const T* logits, long vocab, double temperature, const Noise& noise, const std::vector<float>& peaks,
              Before before) {
    const long blocks = long(peaks.size());
    std::vector<Least> minima(blocks);
    std::vector<double> bounds(blocks);
    long first = 0;
    for (long b = 0; b < blocks; b++) {
        minima[b] = least(noise, b);
        bounds[b] = double(peaks[b]) / temperature - std::log(minima[b].value);
        first = bounds[b] > bounds[first] ? b : first;
    }
    Race<T> race{logits, vocab, temperature, noise, before};
    race.look(first, minima[first]);
    for (long b = 0; b < blocks; b++) {
        if (b != first && bounds[b] + MARGIN >= race.best) race.look(b, minima[b]);
    }
    return race.winner;
}

struct Options {
    double temperature, top_k, top_p, min_p;

    bool cut() const { return top_k > 0 || top_p < 1 || min_p > 0; }
};

// What a row's options leave of its vocabulary.
class Cut {
  public:
    template <class T> Cut(const T* logits, long vocab, const Options& o, float top) : o_(o), scaled_(vocab) {
        const __m512 divisor = _mm512_set1_ps(float(o.temperature));
        for (long i = 0; i < vocab; i += LANES) {
            const __mmask16 lanes = first_lanes(vocab - i);
            store(&scaled_[i], lanes, _mm512_div_ps(load(logits + i, lanes), divisor));
        }
        peak_ = top / float(o.temperature);
        if (o.top_p < 1) weigh();
    }

    const float* scaled() const { return scaled_.data(); }

    // 1 if a token is left, 0 if not, UNSURE. Of top-k, top-p and min-p, in this order: see cutting.py.
    long leaves(long token) const {
        long count = 0;
        const double mass = sum(Before{scaled(), token}, count);
        if (count == 0) return 1;
        if (o_.top_k > 0 && double(count) >= o_.top_k) return 0;
        long left = 1;
        if (o_.top_p < 1) left = compare(o_.top_p * total_ - mass, ROUNDING * total_);
        if (left == 0 || o_.min_p <= 0) return left;
        const double over = double(scaled_[token]) - double(peak_) - std::log(o_.min_p);
        const long most = compare(over, ROUNDING * (1 + std::fabs(double(peak_)) + std::fabs(std::log(o_.min_p))));
        return most == 1 ? left : most;
    }

  private:
    static long compare(double difference, double margin) {
        return difference > margin ? 1 : difference < -margin ? 0 : UNSURE;
    }

    // Of the tokens before one: how many, and their weights' sum.
    double sum(const Before& before, long& count) const {
        __m512d sums = _mm512_setzero_pd();
        for (long i = 0; i < long(scaled_.size()); i += LANES) {
            const __mmask16 lanes = before.lanes(i, first_lanes(long(scaled_.size()) - i));
            count += __builtin_popcount(lanes);
            if (lanes && !weights_.empty()) sums = _mm512_add_pd(sums, doubles(load(&weights_[i], lanes)));
        }
        return _mm512_reduce_add_pd(sums);
    }

    static __m512d doubles(__m512 x) {
        const __m256 low = _mm512_castps512_ps256(x);
        const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x), 1));
        return _mm512_add_pd(_mm512_cvtps_pd(low), _mm512_cvtps_pd(high));
    }

    // Weights e^(x - peak), and their total: of the whole vocabulary, or of what top-k keeps.
    void weigh() {
        weights_.resize(scaled_.size());
        __m512d sums = _mm512_setzero_pd();
        for (long i = 0; i < long(scaled_.size()); i += LANES) {
            const __mmask16 lanes = first_lanes(long(scaled_.size()) - i);
            const __m512 weight = exp16(_mm512_sub_ps(load(&scaled_[i], lanes), _mm512_set1_ps(peak_)));
            store(&weights_[i], lanes, weight);
            sums = _mm512_add_pd(sums, doubles(_mm512_maskz_mov_ps(lanes, weight)));
        }
        total_ = _mm512_reduce_add_pd(sums);
        if (o_.top_k <= 0 || o_.top_k >= double(scaled_.size())) return;
        std::vector<float> kept = weights_;
        std::nth_element(kept.begin(), kept.begin() + long(o_.top_k) - 1, kept.end(), std::greater<float>());
        total_ = 0;
        for (long i = 0; i < long(o_.top_k); i++) total_ += kept[i];
    }

    Options o_;
    std::vector<float> scaled_, weights_;
    float peak_;
    double total_ = 0;
};

template <class T> long draw_cut(const T* logits, long vocab, const Options& o, const Noise& noise,
                                 std::vector<float>& peaks, float top) {
    const Cut cut(logits, vocab, o, top);
    Before before{nullptr, 0};
    while (true) {
        const long winner = race_for(logits, vocab, o.temperature, noise, peaks, before);
        const long left = cut.leaves(winner);
        if (left != 0) return left == 1 ? winner : UNSURE;
        before = {cut.scaled(), winner};
        for (long b = 0; b < long(peaks.size()); b++) {
            const long end = std::min(vocab, (b + 1) * BLOCK);
            __m512 most = _mm512_set1_ps(-INFINITY);
            for (long i = b * BLOCK; i < end; i += LANES) {
                const __mmask16 lanes = before.lanes(i, first_lanes(end - i));
                most = _mm512_mask_max_ps(most, lanes, most, load(logits + i, lanes));
            }
            peaks[b] = _mm512_reduce_max_ps(most);
        }
    }
}

template <class T> long draw_row(const T* logits, long vocab, const Options& o, const Noise& noise) {
    const long blocks = (vocab + BLOCK - 1) / BLOCK;
    std::vector<float> peaks(blocks);
    float top = -INFINITY;
    for (long b = 0; b < blocks; b++) {
        const long count = vocab - b * BLOCK < BLOCK ? vocab - b * BLOCK : BLOCK;
        if (!peak_of(logits + b * BLOCK, count, peaks[b])) return NOT_FINITE;
        top = peaks[b] > top ? peaks[b] : top;
    }
    if (!std::isfinite(top)) return NOT_FINITE;
    if (o.temperature == 0) {
        long token = 0;
        while (peaks[token / BLOCK] != top) token += BLOCK;
        while (seen(logits[token]) != double(top)) token++;
        return token;
    }
    if (o.cut()) return draw_cut(logits, vocab, o, noise, peaks, top);
    return race_for(logits, vocab, o.temperature, noise, peaks, {nullptr, 0});
}

template <class T>
void draw(const T* logits, const int64_t* places, const double* options, int64_t* tokens, long rows, long vocab,
          long threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (rows > 1)
    for (long r = 0; r < rows; r++) {
        const int64_t* place = places + 4 * r;
        const double* option = options + 4 * r;
        const Noise noise{uint32_t(place[0]), uint32_t(place[1]), uint32_t(place[2]), uint32_t(place[3])};
        tokens[r] = draw_row(logits + r * vocab, vocab, {option[0], option[1], option[2], option[3]}, noise);
    }
}

}  // namespace

// logits: [rows, vocab]; places: [rows, 4], low and high word of the seed, position, choice; tokens: [rows], -1 where
// the logits hold NaN or no finite maximum, -2 where the sampler must decide itself. options: [rows, 4], temperature,
// top-k (0 is off), top-p (1 is off), min-p. A temperature of 0 takes the likeliest token, the lowest of equals.
extern "C" void paceline_draw_float32(const float* logits, const int64_t* places, const double* options,
                                      int64_t* tokens, long rows, long vocab, long threads) {
    draw(logits, places, options, tokens, rows, vocab, threads);
}

extern "C" void paceline_draw_bfloat16(const bf16* logits, const int64_t* places, const double* options,
                                       int64_t* tokens, long rows, long vocab, long threads) {
    draw(logits, places, options, tokens, rows, vocab, threads);
}
