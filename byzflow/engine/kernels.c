/* The passes over the rows, on the rows' own memory: no stacking, no copy larger than a tile.
 *
 * Plain C, called through ctypes: it knows neither Python nor torch, and holds no lock. A caller splits the
 * coordinates between threads. The file is compiled once and includes itself for float and for double.
 *
 *   byzflow_pass      mix the rows (weights, or not), then rank each column by a comparator network
 *   byzflow_gram      inner products of the rows, extra vectors and the origin, centred tile by tile
 *   byzflow_norms     their squares alone
 *   byzflow_combine   weighted sums of the rows
 *
 * All note NaN and Inf while they read.
 */
#ifndef T

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MAX_POINTS 4096
#define SATURATE 1e140 /* float64 coordinates beyond this count as this in products: see rows.py */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__linux__)
#define EVERY_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_CPU /* NEON is part of every 64-bit Arm; elsewhere the compiler's default */
#endif
#define INLINE static inline __attribute__((always_inline))

typedef double v8 __attribute__((vector_size(64), aligned(8), may_alias));
typedef double v4 __attribute__((vector_size(32), aligned(8), may_alias));
typedef float v16f __attribute__((vector_size(64), aligned(4), may_alias));
typedef float v8f __attribute__((vector_size(32), aligned(4), may_alias));

typedef int64_t v8i __attribute__((vector_size(64)));

/* Lanes of two vectors, for adding up the lanes of eight vectors. */
#define EVEN ((v8i){0, 8, 2, 10, 4, 12, 6, 14})
#define ODD ((v8i){1, 9, 3, 11, 5, 13, 7, 15})
#define LOW_PAIRS ((v8i){0, 1, 8, 9, 4, 5, 12, 13})
#define HIGH_PAIRS ((v8i){2, 3, 10, 11, 6, 7, 14, 15})
#define LOW_HALF ((v8i){0, 1, 2, 3, 8, 9, 10, 11})
#define HIGH_HALF ((v8i){4, 5, 6, 7, 12, 13, 14, 15})
#if defined(__clang__)
#define __builtin_shuffle(a, b, lanes) byzflow_lanes(a, b, lanes)
static inline v8 byzflow_lanes(v8 a, v8 b, v8i lanes) {
    v8 c;
    for (int t = 0; t < 8; t++) c[t] = lanes[t] < 8 ? a[lanes[t]] : b[lanes[t] - 8];
    return c;
}
#endif

/* Rows that are sorted at a time in registers, more of them that fill such a run up, and tiles that are fetched ahead.
 * RUN and PAD are in kernels.py too. */
#define RUN 32
#define PAD 7
#ifndef AHEAD
#define AHEAD 2
#endif

/* One level of Batcher's network for N values v, in which sorted runs of p are merged: v[i] and v[i + k] are compared. */
#define LEVEL(p, k)                                                                                \
    _Pragma("GCC unroll 32") for (int i = 0; i < N - (k); i++)                                     \
        if (i >= (k) % (p) && (i - (k) % (p)) / (k) % 2 == 0 && i / (2 * (p)) == (i + (k)) / (2 * (p))) { \
            const T x = v[i], y = v[i + (k)];                                                      \
            v[i] = y < x ? y : x; /* two comparisons, so that the compiler sees a minimum and a maximum */ \
            v[i + (k)] = x < y ? y : x;                                                            \
        }
#define MERGES_1 LEVEL(1, 1)
#define MERGES_2 LEVEL(2, 2) LEVEL(2, 1)
#define MERGES_4 LEVEL(4, 4) LEVEL(4, 2) LEVEL(4, 1)
#define MERGES_8 LEVEL(8, 8) LEVEL(8, 4) LEVEL(8, 2) LEVEL(8, 1)
#define MERGES_16 LEVEL(16, 16) LEVEL(16, 8) LEVEL(16, 4) LEVEL(16, 2) LEVEL(16, 1)

/* What is done with a sorted column; the same numbers are in kernels.py. */
enum { RANK_MEAN = 1, CLAMPED_MEAN = 2, NEAREST_MEAN = 3, DEVIATED = 4 };

typedef struct {
    int32_t mode;
    int32_t low, high;           /* ranks whose mean is the result, or the pivot, or that are not clamped */
    int32_t count;               /* values kept around the pivot */
    int32_t comparators;         /* of the network */
    const uint16_t *network;     /* (low row, high row, kept) triples; kept: 3 both, 1 the lower, 2 the higher */
    double factor;               /* DEVIATED: mean + factor * standard deviation, of divisor m - count */
} program;

/* The best instruction set that the loader can choose for the functions below. */
const char *byzflow_cpu(void) {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) return "avx512";
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return "avx2";
    return "sse2";
#elif defined(__aarch64__)
    return "neon";
#else
    return "generic";
#endif
}

#define T float
#define BITS uint32_t
#define EXPONENT 0x7f800000u
#define SIGN 0x80000000u
#define LARGEST __FLT_MAX__
#define NAME(x) x##_f32
#include "kernels.c"
#undef T
#undef BITS
#undef EXPONENT
#undef SIGN
#undef LARGEST
#undef NAME
#undef EIGHT
#undef PUT_EIGHT

#define T double
#define BITS uint64_t
#define EXPONENT 0x7ff0000000000000ull
#define SIGN 0x8000000000000000ull
#define LARGEST __DBL_MAX__
#define NAME(x) x##_f64
#define DOUBLE 1
#include "kernels.c"

#else /* ------------------------------------------------------------------ once for each T */

/* Whether one of `width` coordinates is NaN or Inf: without the sign, these are the largest of all bit patterns. */
INLINE int NAME(infinite)(const T *row, int width) {
    BITS largest = 0;
    for (int j = 0; j < width; j++) {
        BITS bits;
        memcpy(&bits, row + j, sizeof bits);
        bits &= ~SIGN;
        largest = bits > largest ? bits : largest;
    }
    return largest >= EXPONENT;
}

/* Sort each column of N rows into a tile of N rows of B; 1 if a value is NaN or Inf. Source and tile may be the same.
 *
 * Batcher's odd-even merge sort of one column, written for scalars. N is fixed and every loop is unrolled, so that v
 * lies in registers, and the compiler turns the loop over the columns into one vector of them at a time. */
INLINE int NAME(sort_columns)(const T *const *rows, T *tile, const int B, const int N) {
    T odd[16] = {0}; /* 0 times NaN or Inf is NaN */
    for (int c = 0; c < B; c += 16) {
#pragma GCC ivdep
        for (int j = 0; j < 16; j++) {
            T v[RUN], zero = odd[j];
#pragma GCC unroll 32
            for (int i = 0; i < N; i++) {
                v[i] = rows[i][c + j];
                zero += v[i] * 0;
            }
            odd[j] = zero;
            MERGES_1
            if (N > 2) { MERGES_2 }
            if (N > 4) { MERGES_4 }
            if (N > 8) { MERGES_8 }
            if (N > 16) { MERGES_16 }
#pragma GCC unroll 32
            for (int i = 0; i < N; i++) tile[i * B + c + j] = v[i];
        }
    }
    int found = 0;
    for (int j = 0; j < 16; j++) found |= odd[j] != 0; /* as NaN is */
    return found;
}

/* The same for any number of rows up to RUN; behind them are pointers to PAD rows that sort last, and room for these. */
INLINE int NAME(sort_run)(const T *const *rows, int n, T *tile, const int B) {
    switch (n > 16 ? (n + 7) / 8 * 8 : (n + 1) / 2 * 2) { /* each length costs seconds of compiling */
    case 2: return NAME(sort_columns)(rows, tile, B, 2);
    case 4: return NAME(sort_columns)(rows, tile, B, 4);
    case 6: return NAME(sort_columns)(rows, tile, B, 6);
    case 8: return NAME(sort_columns)(rows, tile, B, 8);
    case 10: return NAME(sort_columns)(rows, tile, B, 10);
    case 12: return NAME(sort_columns)(rows, tile, B, 12);
    case 14: return NAME(sort_columns)(rows, tile, B, 14);
    case 16: return NAME(sort_columns)(rows, tile, B, 16);
    case 24: return NAME(sort_columns)(rows, tile, B, 24);
    default: return NAME(sort_columns)(rows, tile, B, RUN);
    }
}

/* The rest of the network, from sorted runs on. */
INLINE void NAME(merge)(T *restrict tile, const program *p, const int B) {
    const uint16_t *c = p->network;
    for (int k = 0; k < p->comparators; k++, c += 3) {
        T *restrict a = tile + (size_t)c[0] * B, *restrict b = tile + (size_t)c[1] * B;
        if (c[2] == 3) {
            for (int j = 0; j < B; j++) {
                T x = a[j], y = b[j];
                a[j] = y < x ? y : x; /* two comparisons, so that the compiler sees a minimum and a maximum */
                b[j] = x < y ? y : x;
            }
        } else if (c[2] == 1) {
            for (int j = 0; j < B; j++) a[j] = b[j] < a[j] ? b[j] : a[j];
        } else {
            for (int j = 0; j < B; j++) b[j] = b[j] < a[j] ? a[j] : b[j];
        }
    }
}

/* Sum in double, so that values near the limit of float do not overflow. */
INLINE void NAME(reduce)(const T *restrict tile, int m, const program *p, double *restrict out, const int B) {
    const int low = p->low, high = p->high;
    for (int j = 0; j < B; j++) out[j] = tile[(size_t)low * B + j];
    for (int i = low + 1; i < high; i++)
        for (int j = 0; j < B; j++) out[j] += tile[(size_t)i * B + j];
    if (p->mode == CLAMPED_MEAN) {
        const double below = low, above = m - high;
        const T *first = tile + (size_t)low * B, *last = tile + (size_t)(high - 1) * B;
        for (int j = 0; j < B; j++) out[j] = (out[j] + below * first[j] + above * last[j]) / m;
        return;
    }
    if (high - low > 2) {
        const double size = high - low;
        for (int j = 0; j < B; j++) out[j] /= size;
    } else if (high - low == 2) {
        for (int j = 0; j < B; j++) out[j] *= 0.5; /* the same, without the time of a division */
    }
    if (p->mode != NEAREST_MEAN) return;
    /* The values nearest to the pivot are neighbours in the column: a window moves up while that brings it nearer. */
    const int count = p->count, moves = m - count;
    double end[B], sum[B];
    for (int j = 0; j < B; j++) end[j] = count;
    for (int s = 0; s < moves; s++) {
        const T *first = tile + (size_t)s * B, *next = first + (size_t)count * B;
        for (int j = 0; j < B; j++) end[j] += out[j] - first[j] > next[j] - out[j] ? 1.0 : 0.0;
    }
    for (int j = 0; j < B; j++) sum[j] = end[j] <= count ? (double)tile[j] : 0.0;
    for (int i = 1; i < m; i++) {
        const T *row = tile + (size_t)i * B;
        const double least = i, most = i + count; /* row i is in the windows that end behind i, and by i + count */
        if (i < moves && i < count)
            for (int j = 0; j < B; j++) sum[j] += end[j] <= most ? (double)row[j] : 0.0;
        else if (i < moves)
            for (int j = 0; j < B; j++) sum[j] += end[j] <= most && end[j] > least ? (double)row[j] : 0.0;
        else if (i < count)
            for (int j = 0; j < B; j++) sum[j] += row[j];
        else
            for (int j = 0; j < B; j++) sum[j] += end[j] > least ? (double)row[j] : 0.0;
    }
    for (int j = 0; j < B; j++) out[j] = sum[j] / count;
}

/* Eight coordinates in double; a macro, because functions that return vectors have no fixed calling convention. */
#ifdef DOUBLE
#define EIGHT(y, source)                                                                  \
    do {                                                                                  \
        (y) = *(const v8 *)(source);                                                      \
        for (int t_ = 0; t_ < 8; t_++)                                                    \
            (y)[t_] = (y)[t_] > SATURATE ? SATURATE : (y)[t_] < -SATURATE ? -SATURATE : (y)[t_]; \
    } while (0)
#define PUT_EIGHT(target, y) (*(v8 *)(target) = (y))
#else
#define EIGHT(y, source) ((y) = __builtin_convertvector(*(const v8f *)(source), v8))
#define PUT_EIGHT(target, y) (*(v8f *)(target) = __builtin_convertvector((y), v8f))
#endif

/* mixed[r * 64 + j] = sum_i weights[r * n + i] rows[i][j], for R rows r and 64 coordinates, 8 * V at a time. */
INLINE void NAME(mix)(const T *const *rows, int n, const double *weights, T *mixed, const int R, const int V) {
    for (int j = 0; j < 64; j += 8 * V) {
        v8 sum[8][8];
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) sum[r][v] = (v8){0};
        for (int i = 0; i < n; i++) {
            v8 x[8];
            for (int v = 0; v < V; v++) EIGHT(x[v], rows[i] + j + 8 * v);
            for (int r = 0; r < R; r++) {
                const v8 w = (v8){0} + weights[(size_t)r * n + i];
                for (int v = 0; v < V; v++) sum[r][v] += w * x[v];
            }
        }
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) PUT_EIGHT(mixed + r * 64 + j + 8 * v, sum[r][v]);
    }
}

/* The mean of each column plus a multiple of its standard deviation, by differences from the mean. */
INLINE void NAME(deviate)(const T *const *rows, int m, const program *p, double *restrict out, const int B) {
    double squares[B];
    for (int j = 0; j < B; j++) out[j] = squares[j] = 0;
    for (int i = 0; i < m; i++) {
        const T *restrict row = rows[i];
        for (int j = 0; j < B; j++) out[j] += row[j];
    }
    for (int j = 0; j < B; j++) out[j] /= m;
    for (int i = 0; i < m; i++) {
        const T *restrict row = rows[i];
        for (int j = 0; j < B; j++) squares[j] += (row[j] - out[j]) * (row[j] - out[j]);
    }
    for (int j = 0; j < B; j++) out[j] += p->factor * __builtin_sqrt(squares[j] / (m - p->count));
}

INLINE void NAME(pass_tiles)(const T *const *rows, int n, ptrdiff_t d, const double *weights, int m, const program *p,
                             T *out, uint8_t *bad, T *tile, const T **source, const int B) {
    const T **ranked = weights ? source + n : source; /* the rows that are ranked */
    T largest[B];
    for (int j = 0; j < B; j++) largest[j] = LARGEST;
    for (int r = 0; r < PAD; r++) ranked[m + r] = largest;
    for (ptrdiff_t c = 0; c < d; c += B) {
        const int width = d - c < B ? (int)(d - c) : B;
        const ptrdiff_t ahead = c + AHEAD * B < d ? c + AHEAD * B : c;
        for (int i = 0; i < n; i++) {
            for (size_t byte = 0; byte < B * sizeof(T); byte += 64)
                __builtin_prefetch((const char *)(rows[i] + ahead) + byte, 0, 2);
            source[i] = rows[i] + c; /* read where it lies */
            if (width == B) continue;
            T *row = tile + (size_t)i * B;
            memset(row, 0, B * sizeof(T));
            memcpy(row, source[i], (size_t)width * sizeof(T));
            source[i] = row;
        }
        if (weights) {
            T *mixed = tile + (size_t)(n + PAD) * B;
            int r = 0;
            for (; r + 8 <= m; r += 8) NAME(mix)(source, n, weights + (size_t)r * n, mixed + (size_t)r * B, 8, 2);
            for (; r + 2 <= m; r += 2) NAME(mix)(source, n, weights + (size_t)r * n, mixed + (size_t)r * B, 2, 4);
            for (; r < m; r++) NAME(mix)(source, n, weights + (size_t)r * n, mixed + (size_t)r * B, 1, 8);
            for (r = 0; r < m; r++) ranked[r] = mixed + (size_t)r * B;
        }
        int found = 0;
        if (p->mode == DEVIATED) {
            double deviated[B];
            NAME(deviate)(ranked, m, p, deviated, B);
            for (int j = 0; j < width; j++) {
                found |= !(__builtin_fabs(deviated[j]) < __builtin_inf());
                out[c + j] = (T)deviated[j];
            }
            if (found && !weights)
                for (int i = 0; i < n; i++) bad[i] |= NAME(infinite)(rows[i] + c, width);
            continue;
        }
        for (int r = 0; r < m; r += RUN)
            found |= NAME(sort_run)(ranked + r, m - r < RUN ? m - r : RUN, tile + (size_t)r * B, B);
        if (found && !weights)
            for (int i = 0; i < n; i++) bad[i] |= NAME(infinite)(rows[i] + c, width);
        double result[B];
        NAME(merge)(tile, p, B);
        NAME(reduce)(tile, m, p, result, B);
        for (int j = 0; j < width; j++) out[c + j] = (T)result[j];
    }
}

/* One pass over d coordinates of n rows. weights: (m, n) or NULL (then m = n). out: (d,).
 * Room: tile (n + m + 2 PAD) * 64 of T, source n + m + PAD pointers. bad: (n,), added to where rows are ranked as they
 * are, without weights. */
EVERY_CPU void NAME(byzflow_pass)(const T *const *rows, int n, ptrdiff_t d, const double *weights, int m, const program *p,
                                  T *out, uint8_t *bad, T *tile, const T **source) {
    NAME(pass_tiles)(rows, n, d, weights, m, p, out, bad, tile, source, 64);
}

/* Adds to g, rows of `stride`, the inner products of a, 4 rows of C, with b, 4 rows, over `width` coordinates (a
 * multiple of 8). Each is one sum in one order, whatever its place: equal rows get equal products. */
INLINE void NAME(block)(const double *a, const double *b, ptrdiff_t C, int width, double *g, ptrdiff_t stride,
                        const int diagonal) {
    v8 s[4][4];
    memset(s, 0, sizeof s);
    for (int c = 0; c < width; c += 8) {
        v8 x[4], y[4];
        for (int k = 0; k < 4; k++) x[k] = *(const v8 *)(a + k * C + c);
        for (int k = 0; k < 4; k++) y[k] = diagonal ? x[k] : *(const v8 *)(b + k * C + c);
        for (int k = 0; k < 4; k++)
            for (int l = diagonal ? k : 0; l < 4; l++) s[k][l] += x[k] * y[l];
    }
    for (int k = 0; k < 4; k += 2) { /* the lanes of eight vectors at once */
        v8 quarter[4], half[2];
        for (int q = 0; q < 4; q++) {
            const v8 even = s[k + q / 2][q % 2 * 2], odd = s[k + q / 2][q % 2 * 2 + 1];
            quarter[q] = __builtin_shuffle(even, odd, EVEN) + __builtin_shuffle(even, odd, ODD);
        }
        for (int q = 0; q < 2; q++)
            half[q] = __builtin_shuffle(quarter[2 * q], quarter[2 * q + 1], LOW_PAIRS) +
                      __builtin_shuffle(quarter[2 * q], quarter[2 * q + 1], HIGH_PAIRS);
        const v8 sums = __builtin_shuffle(half[0], half[1], LOW_HALF) + __builtin_shuffle(half[0], half[1], HIGH_HALF);
        v4 rows[2];
        memcpy(rows, &sums, sizeof rows);
        *(v4 *)(g + k * stride) += rows[0];
        *(v4 *)(g + (k + 1) * stride) += rows[1];
    }
}

/* The squared norm of `width` coordinates; not finite if one of them is not. */
INLINE double NAME(square)(const T *restrict row, ptrdiff_t width) {
    v8 sum[4] = {{0}, {0}, {0}, {0}};
    double rest = 0;
    ptrdiff_t j = 0;
    for (; j + 32 <= width; j += 32)
        for (int v = 0; v < 4; v++) {
            v8 x;
            EIGHT(x, row + j + 8 * v);
            sum[v] += x * x;
        }
    for (; j < width; j++) {
        double x = row[j];
#ifdef DOUBLE
        x = x > SATURATE ? SATURATE : x < -SATURATE ? -SATURATE : x;
#endif
        rest += x * x;
    }
    const v8 all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (int t = 0; t < 8; t++) rest += all[t];
#ifdef DOUBLE
    int64_t largest = 0; /* an Inf was saturated; a float's square is finite in double */
    for (j = 0; j < width; j++) {
        int64_t bits;
        memcpy(&bits, row + j, sizeof bits);
        bits &= INT64_MAX;
        largest = bits > largest ? bits : largest;
    }
    if (largest >= (int64_t)EXPONENT) return __builtin_inf();
#endif
    return rest;
}

/* Adds to squares (n,) the squared norms of n rows over d coordinates; bad: (n,), added to. */
EVERY_CPU void NAME(byzflow_norms)(const T *const *rows, int n, ptrdiff_t d, double *squares, uint8_t *bad) {
    for (int i = 0; i < n; i++) {
        const double square = NAME(square)(rows[i], d);
        squares[i] += square;
        bad[i] |= !(square < __builtin_inf());
    }
}

/* The lower median of the first n norms without the bad rows, by its index; -1 if all are bad. */
INLINE int NAME(median_row)(const double *norms, const uint8_t *bad, int n, double *scratch, int *order) {
    int good = 0;
    for (int i = 0; i < n; i++)
        if (!bad[i]) order[good] = i, scratch[good++] = norms[i];
    if (!good) return -1;
    int low = 0, high = good - 1;
    const int wanted = (good - 1) / 2;
    while (low < high) { /* quickselect around the middle element */
        const double pivot = scratch[low + (high - low) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (scratch[i] < pivot) i++;
            while (pivot < scratch[j]) j--;
            if (i <= j) {
                double s = scratch[i];
                int o = order[i];
                scratch[i] = scratch[j], order[i] = order[j];
                scratch[j] = s, order[j] = o;
                i++, j--;
            }
        }
        if (wanted <= j) high = j;
        else if (wanted >= i) low = i;
        else break;
    }
    return order[wanted];
}

/* The squared norm to a few digits, which are enough to put rows in order, at half the work; not finite if one of the
 * coordinates is not. */
INLINE double NAME(rough_square)(const T *restrict row, ptrdiff_t width) {
#ifndef DOUBLE
    v16f sum[4] = {{0}, {0}, {0}, {0}};
    const ptrdiff_t whole = width / 64 * 64;
    for (ptrdiff_t j = 0; j < whole; j += 64)
        for (int v = 0; v < 4; v++) {
            const v16f x = *(const v16f *)(row + j + 16 * v);
            sum[v] += x * x;
        }
    const v16f all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    double total = 0;
    for (int t = 0; t < 16; t++) total += all[t];
    if (total > 1e-20 && total < 1e38) return total + NAME(square)(row + whole, width - whole);
#endif
    return NAME(square)(row, width); /* in float it may have overflowed, or vanished */
}

/* row = source - reference, in double, with zeros up to a multiple of 8; either may be NULL, for zeros. */
INLINE void NAME(centre)(const T *restrict source, const double *restrict reference, double *restrict row, int width) {
    int j = 0;
    for (; j + 8 <= width; j += 8) {
        v8 x = {0};
        if (source) EIGHT(x, source + j);
        if (reference) x -= *(const v8 *)(reference + j);
        *(v8 *)(row + j) = x;
    }
    if (j == width) return;
    for (int end = j + 8; j < end; j++) {
        double x = source && j < width ? source[j] : 0;
#ifdef DOUBLE
        x = x > SATURATE ? SATURATE : x < -SATURATE ? -SATURATE : x;
#endif
        row[j] = reference ? x - reference[j] : x;
    }
}

/* Adds to g (q, q), q = n + 1 points rounded up to a multiple of 4: the inner products over d coordinates of n rows
 * and the origin, upper blocks only. Only the first `judged` rows are tested and may be the reference, the row of
 * median norm over `span` coordinates, which are worked through in tiles of C. tile: (q + 1) * C doubles. */
EVERY_CPU void NAME(byzflow_gram)(const T *const *rows, int n, int judged, ptrdiff_t d, double *g, uint8_t *bad, double *tile,
                                  int C, ptrdiff_t span) {
    double norms[MAX_POINTS], scratch[MAX_POINTS];
    int order[MAX_POINTS];
    uint8_t bad_here[MAX_POINTS];
    const int q = (n + 4) / 4 * 4;
    double *reference = tile + (ptrdiff_t)q * C;
    memset(tile, 0, (size_t)(q + 1) * C * sizeof(double)); /* rows beyond the origin stay 0 */
    for (ptrdiff_t first = 0; first < d; first += span) {
        const ptrdiff_t last = d - first < span ? d : first + span;
        for (int i = 0; i < judged; i++) {
            norms[i] = NAME(rough_square)(rows[i] + first, last - first);
            bad_here[i] = !(norms[i] < __builtin_inf());
            bad[i] |= bad_here[i];
        }
        const int chosen = NAME(median_row)(norms, bad_here, judged, scratch, order);
        for (ptrdiff_t c = first; c < last; c += C) {
            const int width = last - c < C ? (int)(last - c) : C;
            const ptrdiff_t ahead = c + span + C <= d ? c + span : c;
            NAME(centre)(chosen < 0 ? NULL : rows[chosen] + c, NULL, reference, width);
            for (int i = 0; i < n; i++) {
                for (size_t byte = 0; byte < C * sizeof(T); byte += 64)
                    __builtin_prefetch((const char *)(rows[i] + ahead) + byte, 0, 2);
                /* 0 * inf is NaN: a row that is not finite is at the origin here */
                NAME(centre)(i < judged && bad_here[i] ? NULL : rows[i] + c, reference, tile + (ptrdiff_t)i * C, width);
            }
            NAME(centre)(NULL, reference, tile + (ptrdiff_t)n * C, width);
            const int even = (width + 7) / 8 * 8;
            for (int group = 0; group < q; group += 16) /* 16 rows stay in the first cache */
                for (int j = group; j < q; j += 4)
                    for (int i = group; i < group + 16 && i <= j; i += 4) {
                        const double *a = tile + (ptrdiff_t)i * C, *b = tile + (ptrdiff_t)j * C;
                        if (i == j) NAME(block)(a, a, C, even, g + (ptrdiff_t)i * q + i, q, 1);
                        else NAME(block)(a, b, C, even, g + (ptrdiff_t)i * q + j, q, 0);
                    }
        }
    }
}

/* target = source in T; 1 if one of the coordinates is NaN or Inf. */
INLINE int NAME(put)(const double *restrict source, T *restrict target, int width) {
    BITS largest = 0;
    for (int j = 0; j < width; j++) {
        const T x = (T)source[j];
        BITS bits;
        memcpy(&bits, &x, sizeof bits);
        bits &= ~SIGN;
        largest = bits > largest ? bits : largest;
        target[j] = x;
    }
    return largest >= EXPONENT;
}

/* sum += K rows times their weights, while their next tile is fetched. */
INLINE void NAME(add)(const T *const *rows, const double *weights, const int K, ptrdiff_t c, int width, int ahead,
                      double *restrict sum) {
    const T *x[8];
    v8 w[8];
    for (int k = 0; k < K; k++) x[k] = rows[k] + c, w[k] = (v8){0} + weights[k];
    int j = 0;
    for (; j + 16 <= width; j += 16) {
        for (int k = 0; k < K; k++) __builtin_prefetch(x[k] + j + ahead, 0, 2);
        for (int v = 0; v < 16; v += 8) {
            v8 all = *(v8 *)(sum + j + v);
            for (int k = 0; k < K; k++) {
                v8 y;
                EIGHT(y, x[k] + j + v);
                all += w[k] * y;
            }
            *(v8 *)(sum + j + v) = all;
        }
    }
    for (; j < width; j++) {
        double all = sum[j];
        for (int k = 0; k < K; k++) {
            double y = x[k][j];
#ifdef DOUBLE
            y = y > SATURATE ? SATURATE : y < -SATURATE ? -SATURATE : y;
#endif
            all += weights[k] * y;
        }
        sum[j] = all;
    }
}

/* out = the sum of `count` rows times their weights; a lone row of weight 1 is copied. Returns as byzflow_combine. */
INLINE int NAME(combine_one)(const T *const *rows, const double *weights, int count, ptrdiff_t d, T *restrict out) {
    double sum[2048];
    int odd = 0;
    for (ptrdiff_t c = 0; c < d; c += 2048) {
        const int width = d - c < 2048 ? (int)(d - c) : 2048;
        if (count == 1 && weights[0] == 1) {
            memcpy(out + c, rows[0] + c, (size_t)width * sizeof(T));
            odd |= NAME(infinite)(rows[0] + c, width);
            continue;
        }
        const int ahead = d - c >= 4096 ? 2048 : 0;
        int i = 0;
        memset(sum, 0, sizeof sum);
        for (; i + 8 <= count; i += 8) NAME(add)(rows + i, weights + i, 8, c, width, ahead, sum);
        for (; i + 4 <= count; i += 4) NAME(add)(rows + i, weights + i, 4, c, width, ahead, sum);
        for (; i + 2 <= count; i += 2) NAME(add)(rows + i, weights + i, 2, c, width, ahead, sum);
        if (i < count) NAME(add)(rows + i, weights + i, 1, c, width, ahead, sum);
        odd |= NAME(put)(sum, out + c, width);
    }
    return odd;
}

#define MIXED 5 /* rows at a time: 20 sums, 4 operands and a weight in 32 registers */

/* out rows r to r + MIXED of 32 coordinates = weights, (n, MIXED), times x, (n, 32). */
INLINE void NAME(mix_strip)(const double *x, const double *weights, int n, double *out) {
    v8 sum[MIXED][4];
    memset(sum, 0, sizeof sum);
    for (int i = 0; i < n; i++, x += 32, weights += MIXED) {
        v8 y[4];
        for (int v = 0; v < 4; v++) y[v] = *(const v8 *)(x + 8 * v);
        for (int r = 0; r < MIXED; r++)
            for (int v = 0; v < 4; v++) sum[r][v] += weights[r] * y[v];
    }
    for (int r = 0; r < MIXED; r++)
        for (int v = 0; v < 4; v++) *(v8 *)(out + r * 32 + 8 * v) = sum[r][v];
}

/* out (m rows) = weights (m, n) times n rows over d coordinates. Where few weights of a row are not 0, only those are
 * worked through; else weights, in the order (m / MIXED rounded up, n, MIXED), come padded with zeros as `packed`.
 * Room: n * 128 doubles. Returns 1 if the answer holds NaN or Inf. */
EVERY_CPU int NAME(byzflow_combine)(const T *const *rows, int n, ptrdiff_t d, const double *weights, const double *packed,
                                    int m, T *const *out, double *tile) {
    int odd = 0;
    if (!packed) {
        const T *used[MAX_POINTS];
        double w[MAX_POINTS];
        for (int r = 0; r < m; r++) {
            int count = 0;
            for (int i = 0; i < n; i++)
                if (weights[(ptrdiff_t)r * n + i] != 0) used[count] = rows[i], w[count++] = weights[(ptrdiff_t)r * n + i];
            odd |= NAME(combine_one)(used, w, count, d, out[r]);
        }
        return odd;
    }
    for (ptrdiff_t c = 0; c < d; c += 128) {
        const int width = d - c < 128 ? (int)(d - c) : 128;
        for (int i = 0; i < n; i++) /* strip by strip, each as long as two cache lines of float */
            for (int s = 0; s < width; s += 32) {
                __builtin_prefetch((const char *)(rows[i] + (c + 256 <= d ? c + 128 + s : c)), 0, 2);
                __builtin_prefetch((const char *)(rows[i] + (c + 256 <= d ? c + 144 + s : c)), 0, 2);
                NAME(centre)(rows[i] + c + s, NULL, tile + ((ptrdiff_t)s / 32 * n + i) * 32, width - s < 32 ? width - s : 32);
            }
        for (int s = 0; s < width; s += 32)
            for (int r = 0; r < m; r += MIXED) {
                double mixed[MIXED * 32];
                NAME(mix_strip)(tile + (ptrdiff_t)s * n, packed + (ptrdiff_t)r * n, n, mixed);
                for (int k = 0; k < MIXED && r + k < m; k++)
                    odd |= NAME(put)(mixed + k * 32, out[r + k] + c + s, width - s < 32 ? width - s : 32);
            }
    }
    return odd;
}

#undef MIXED
#endif
