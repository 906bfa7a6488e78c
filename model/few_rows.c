/*
 * Products of a few rows with packed bfloat16 weights, at the speed at which memory gives weights.
 *
 * The weights lie as oneDNN packs them for AVX-512 with bfloat16: in panels of 64 outputs, one
 * after another, and in a panel by pairs of inputs: w[panel][input / 2][output % 64][input % 2].
 * So a panel is read from its first byte to its last, and one vdpbf16ps adds up a pair for 16
 * outputs. A row's sums run over the inputs in one order, however many rows are with it.
 *
 * Built without libgomp: the OpenMP runtime, with its threads, is the one that PyTorch has loaded.
 */
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>

typedef uint16_t bf16;

enum {
    PANEL = 64,             /* outputs */
    LANES = 16,             /* outputs of one vector */
    VECTORS = 4,            /* of a panel */
    GROUP_ROWS = 6,         /* rows * VECTORS sums and VECTORS weights fit into 32 registers */
    MAX_ROWS = 16,
    CHUNK_INPUTS = 4096,    /* of a panel, 512 KB: for the next group of rows it may still be near */
    AHEAD_BYTES = 4096,     /* how far ahead weights are fetched */
};

/* One expert and its rows: first to end. */
struct part {
    const bf16 *gate_up;
    const bf16 *down;
    long first;
    long end;
};

/* Add inputs `from` to `to` of `rows` rows, a number known when this is compiled, to `sums`. */
static inline __attribute__((always_inline)) void add_group(
    const int rows, const bf16 *w, const bf16 *x, long inputs, long from, long to, float *sums)
{
    __m512 acc[GROUP_ROWS][VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            acc[r][v] = _mm512_loadu_ps(sums + r * PANEL + v * LANES);
    for (long i = from; i < to; i += 2) {
        const bf16 *pair = w + i * PANEL;
        __m512bh weights[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            /* Past the outer caches: what the rest of a step works with is to stay in there. */
            _mm_prefetch((const char *)(pair + 2 * LANES * v) + AHEAD_BYTES, _MM_HINT_NTA);
            weights[v] = (__m512bh)_mm512_loadu_si512(pair + 2 * LANES * v);
        }
        for (int r = 0; r < rows; r++) {
            int32_t both;
            __builtin_memcpy(&both, x + r * inputs + i, sizeof both);
            __m512bh row = (__m512bh)_mm512_set1_epi32(both);
            for (int v = 0; v < VECTORS; v++)
                acc[r][v] = _mm512_dpbf16_ps(acc[r][v], weights[v], row);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            _mm512_storeu_ps(sums + r * PANEL + v * LANES, acc[r][v]);
}

/* Multiply all rows with one panel: sums[row][output % 64]. */
static void multiply(long rows, const bf16 *w, const bf16 *x, long inputs, float *sums)
{
    long groups = (rows + GROUP_ROWS - 1) / GROUP_ROWS;
    __builtin_memset(sums, 0, rows * PANEL * sizeof *sums);
    for (long from = 0; from < inputs; from += CHUNK_INPUTS) {
        long to = from + CHUNK_INPUTS < inputs ? from + CHUNK_INPUTS : inputs;
        for (long g = 0; g < groups; g++) {
            long first = rows * g / groups, end = rows * (g + 1) / groups;
            const bf16 *xs = x + first * inputs;
            float *s = sums + first * PANEL;
            switch (end - first) {
            case 1: add_group(1, w, xs, inputs, from, to, s); break;
            case 2: add_group(2, w, xs, inputs, from, to, s); break;
            case 3: add_group(3, w, xs, inputs, from, to, s); break;
            case 4: add_group(4, w, xs, inputs, from, to, s); break;
            case 5: add_group(5, w, xs, inputs, from, to, s); break;
            case 6: add_group(6, w, xs, inputs, from, to, s); break;
            }
        }
    }
}

static inline void store(bf16 *y, __m512 numbers)
{
    _mm256_storeu_si256((__m256i *)y, (__m256i)_mm512_cvtneps_pbh(numbers));
}

static inline __m512 load(const bf16 *x)
{
    __m256i numbers = _mm256_loadu_si256((const __m256i *)x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(numbers), 16));
}

static void store_panel(long rows, const float *sums, bf16 *y, long outputs)
{
    for (long r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++)
            store(y + r * outputs + v * LANES, _mm512_loadu_ps(sums + r * PANEL + v * LANES));
}

/* e^x: 2^n with n whole, times a polynomial of the rest (Cephes' coefficients). */
static inline __m512 exponential(__m512 x)
{
    /* At the limits it is 0 and infinity already; in this order of operands a NaN comes through. */
    x = _mm512_min_ps(_mm512_set1_ps(200.0f), _mm512_max_ps(_mm512_set1_ps(-200.0f), x));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* silu(gate) * up of one panel. */
static void store_gated(long rows, const float *gate, const float *up, bf16 *h, long hidden)
{
    __m512 one = _mm512_set1_ps(1.0f);
    for (long r = 0; r < rows; r++)
        for (int v = 0; v < VECTORS; v++) {
            __m512 g = _mm512_loadu_ps(gate + r * PANEL + v * LANES);
            __m512 u = _mm512_loadu_ps(up + r * PANEL + v * LANES);
            __m512 e = exponential(_mm512_sub_ps(_mm512_setzero_ps(), g));
            __m512 silu = _mm512_div_ps(g, _mm512_add_ps(one, e));
            store(h + r * hidden + v * LANES, _mm512_mul_ps(silu, u));
        }
}

/* A row over its root mean square, rounded, times the weight: in float32, each step like PyTorch. */
static void normalise(const bf16 *x, const bf16 *weight, bf16 *y, long dim, float eps)
{
    __m512 squares = _mm512_setzero_ps();
    for (long d = 0; d < dim; d += LANES) {
        __m512 numbers = load(x + d);
        squares = _mm512_fmadd_ps(numbers, numbers, squares);
    }
    __m512 scale = _mm512_set1_ps(1.0f / sqrtf(_mm512_reduce_add_ps(squares) / dim + eps));
    for (long d = 0; d < dim; d += LANES) {
        store(y + d, _mm512_mul_ps(load(x + d), scale));
        store(y + d, _mm512_mul_ps(load(y + d), load(weight + d)));
    }
}

/* Root-mean-square normalisation of x (rows, dim); on one thread, being so little. */
void few_rows_norm(const bf16 *x, const bf16 *weight, bf16 *y, long rows, long dim, float eps)
{
    for (long r = 0; r < rows; r++)
        normalise(x + r * dim, weight, y + r * dim, dim, eps);
}

/* y (rows, outputs) = x (rows, inputs) times w; rows up to MAX_ROWS. */
void few_rows_linear(
    const bf16 *x, const bf16 *w, bf16 *y, long rows, long inputs, long outputs)
{
#pragma omp parallel
    {
        float sums[MAX_ROWS * PANEL];
        long thread = omp_get_thread_num(), threads = omp_get_num_threads();
        long panels = outputs / PANEL;
        for (long p = panels * thread / threads; p < panels * (thread + 1) / threads; p++) {
            multiply(rows, w + p * PANEL * inputs, x, inputs, sums);
            store_panel(rows, sums, y + p * PANEL, outputs);
        }
    }
}

/*
 * Each part's network on its own rows of x (rows, dim), up to MAX_ROWS each; h (rows, hidden) is
 * room for what lies between. The threads share out the panels of all parts together.
 */
void few_rows_swiglu(const bf16 *x, const struct part *parts, long num_parts, bf16 *h, bf16 *y,
                     long dim, long hidden)
{
#pragma omp parallel
    {
        float gate[MAX_ROWS * PANEL], up[MAX_ROWS * PANEL];
        long thread = omp_get_thread_num(), threads = omp_get_num_threads();
        long panels = hidden / PANEL, all = num_parts * panels;
        for (long i = all * thread / threads; i < all * (thread + 1) / threads; i++) {
            const struct part *part = parts + i / panels;
            long p = i % panels, rows = part->end - part->first;
            const bf16 *w = part->gate_up + p * PANEL * dim;
            multiply(rows, w, x + part->first * dim, dim, gate);
            multiply(rows, w + hidden * dim, x + part->first * dim, dim, up);
            store_gated(rows, gate, up, h + part->first * hidden + p * PANEL, hidden);
        }
#pragma omp barrier
        panels = dim / PANEL, all = num_parts * panels;
        for (long i = all * thread / threads; i < all * (thread + 1) / threads; i++) {
            const struct part *part = parts + i / panels;
            long p = i % panels, rows = part->end - part->first;
            multiply(rows, part->down + p * PANEL * hidden, h + part->first * hidden, hidden, gate);
            store_panel(rows, gate, y + part->first * dim + p * PANEL, dim);
        }
    }
}
