// Products of bfloat16 rows with packed weights, which are bfloat16 or integers with a scale for every group of inputs.
//
// An output is one chain of fused dot products of pairs over k, ascending, in float32; with scales a chain for every
// group, each times its scale added to the groups before it. Its bits depend on its row and its column of weights alone,
// not on how many rows there are or where they stand.
#include <vector>

#include "kernels.h"
#include "weights.h"

#ifdef __AVX512BF16__
namespace {

constexpr int BLOCK = 12;    // rows at once: 24 sums, 2 weights and 1 input fit the 32 registers
constexpr int AHEAD = 2048;  // bytes prefetched ahead of use

struct Out {
    const bf16* bias;      // [n], or null
    const bf16* residual;  // like out, or null: added to the rounded product, and rounded again
    bf16* out;
    long n;
};

// The inputs of some rows of x: [., k], and one panel of weights.
struct Task {
    const bf16* x;
    long k;
    const uint8_t* weights;
    const bf16* scales;
    const float* sums;  // [., groups]: of the inputs of each group; needed for 4 bits only
    long group;
};

inline __m512bh pair(const bf16* at) {
    int32_t both;
    std::memcpy(&both, at, sizeof both);
    return (__m512bh)_mm512_set1_epi32(both);
}

void finish(const Out& o, long row, long column, __m512 sum) {
    if (column >= o.n) return;
    const __mmask16 lanes = first_lanes(o.n - column);
    if (o.bias) sum = _mm512_add_ps(sum, load(o.bias + column, lanes));
    const long at = row * o.n + column;
    if (o.residual) sum = _mm512_add_ps(load(o.residual + at, lanes), rounded<bf16>(sum));
    store(o.out + at, lanes, sum);
}

// The sums over inputs begin to end; returns the weights that follow.
template <int ROWS, class Weights>
inline __attribute__((always_inline)) const uint8_t* chain(const Weights& unpacker, const bf16* first, long k,
                                                           long begin, long end, const uint8_t* weights,
                                                           __m512 (&sums)[ROWS][2]) {
    for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (long i = begin; i < end; i += 2 * Weights::PAIRS, weights += Weights::BYTES) {
        __m512bh pairs[Weights::PAIRS][2];
        unpacker.unpack(weights, pairs);
        for (int line = 0; line < Weights::BYTES; line += 64)
            _mm_prefetch((const char*)weights + AHEAD + line, _MM_HINT_T0);
#pragma GCC unroll 2
        for (int p = 0; p < Weights::PAIRS; p++) {
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; r++) {
                const __m512bh both = pair(first + r * k + i + 2 * p);
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], pairs[p][0], both);
                sums[r][1] = _mm512_dpbf16_ps(sums[r][1], pairs[p][1], both);
            }
        }
    }
    return weights;
}

// totals += sums · scales, of one group.
template <int ROWS, class Weights>
inline __attribute__((always_inline)) void scale(const __m512 (&sums)[ROWS][2], const bf16* scales, const float* inputs,
                                                 long groups, __m512 (&totals)[ROWS][2]) {
    for (int half = 0; half < 2; half++) {
        const __m512 factor = load(scales + half * LANES, 0xFFFF);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) totals[r][half] = _mm512_fmadd_ps(sums[r][half], factor, totals[r][half]);
        if constexpr (Weights::SCALES == 2) {
            const __m512 low = load(scales + PANEL + half * LANES, 0xFFFF);
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; r++)
                totals[r][half] = _mm512_fmadd_ps(_mm512_set1_ps(inputs[r * groups]), low, totals[r][half]);
        }
    }
}

template <int ROWS, class Weights>
void some_rows(const Weights& unpacker, const Task& task, const Out& o, long row, long column) {
    const bf16* first = task.x + row * task.k;
    __m512 sums[ROWS][2];
    if constexpr (Weights::SCALES == 0) {
        chain(unpacker, first, task.k, 0, task.k, task.weights, sums);
    } else {
        const long groups = (task.k + task.group - 1) / task.group;
        const uint8_t* weights = task.weights;
        __m512 totals[ROWS][2];
        for (int r = 0; r < ROWS; r++) totals[r][0] = totals[r][1] = _mm512_setzero_ps();
        for (long g = 0; g < groups; g++) {
            const long begin = g * task.group, end = begin + task.group < task.k ? begin + task.group : task.k;
            weights = chain(unpacker, first, task.k, begin, end, weights, sums);
            const float* inputs = task.sums + row * groups + g;
            scale<ROWS, Weights>(sums, task.scales + g * Weights::SCALES * PANEL, inputs, groups, totals);
        }
        std::memcpy(sums, totals, sizeof sums);
    }
    for (int r = 0; r < ROWS; r++) {
        finish(o, row + r, column, sums[r][0]);
        finish(o, row + r, column + LANES, sums[r][1]);
    }
}

template <class W> using SomeRows = void (*)(const W&, const Task&, const Out&, long, long);
template <class W>
constexpr SomeRows<W> SOME_ROWS[BLOCK + 1] = {
    nullptr,         some_rows<1, W>, some_rows<2, W>, some_rows<3, W>,  some_rows<4, W>,  some_rows<5, W>, some_rows<6, W>,
    some_rows<7, W>, some_rows<8, W>, some_rows<9, W>, some_rows<10, W>, some_rows<11, W>, some_rows<12, W>};

// The sums of each group of every row's inputs: [rows, groups], in room of the thread's own.
const float* group_sums(const bf16* x, long rows, long k, long group) {
    static thread_local std::vector<float> room;
    const long groups = (k + group - 1) / group;
    if (long(room.size()) < rows * groups) room.resize(rows * groups);
    for (long r = 0; r < rows; r++)
        for (long g = 0; g < groups; g++) {
            __m512 sum = _mm512_setzero_ps();
            const long end = (g + 1) * group < k ? (g + 1) * group : k;
            for (long i = g * group; i < end; i += LANES)
                sum = _mm512_add_ps(sum, load(x + r * k + i, first_lanes(end - i)));
            room[r * groups + g] = _mm512_reduce_add_ps(sum);
        }
    return room.data();
}

template <class Weights>
void multiply(const bf16* x, const Linear& l, const bf16* residual, bf16* out, long rows, long k, long n) {
    const Weights unpacker;
    const Out o{l.bias, residual, out, n};
    const long panels = (n + PANEL - 1) / PANEL;
    const long blocks = (rows + BLOCK - 1) / BLOCK;
    const long panel_bytes = k / (2 * Weights::PAIRS) * Weights::BYTES;
    const long panel_scales = Weights::SCALES ? (k + l.group - 1) / l.group * Weights::SCALES * PANEL : 0;
    const float* sums = Weights::SCALES == 2 ? group_sums(x, rows, k, l.group) : nullptr;
#pragma omp for schedule(static)
    for (long panel = 0; panel < panels; panel++) {
        const uint8_t* weights = (const uint8_t*)l.weights + panel * panel_bytes;
        const Task task{x, k, weights, l.scales + panel * panel_scales, sums, l.group};
        for (long b = 0; b < blocks; b++) {
            const long begin = rows * b / blocks, end = rows * (b + 1) / blocks;
            SOME_ROWS<Weights>[end - begin](unpacker, task, o, begin, panel * PANEL);
        }
    }
}

}  // namespace

void product(const bf16* x, const Linear& l, const bf16* residual, bf16* out, long rows, long k, long n) {
#ifdef __AVX512VBMI__
    if (l.bits == 4) return multiply<Int4Weights>(x, l, residual, out, rows, k, n);
    if (l.bits == 8) return multiply<Int8Weights>(x, l, residual, out, rows, k, n);
#endif
    multiply<Bfloat16Weights>(x, l, residual, out, rows, k, n);
}

// x: [rows, k], k even, of 4 bits a multiple of 4; residual, out: [rows, n].
extern "C" void paceline_product(const bf16* x, const Linear* l, const bf16* residual, bf16* out, long rows, long k,
                                 long n, long threads) {
#pragma omp parallel num_threads(threads)
    product(x, *l, residual, out, rows, k, n);
}
#endif
