/* Antialiased bicubic resize of 8-bit pixels, equal to Pillow's to the bit; the input comes row by
   row.

   Each direction is a pass of its own in fixed-point arithmetic, rounded to 8 bits at its end. */

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef HAS_AVX2 /* whether the compiler has it; use_avx2() asks the processor */
#if defined(__GNUC__) && defined(__x86_64__)
#define HAS_AVX2 1
#else
#define HAS_AVX2 0
#endif
#endif

#if HAS_AVX2
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#endif

#define BITS 22 /* of a weight's fraction: with 8 bits of a pixel, a sign and overshoot it is 32 */
#define HALF (1 << (BITS - 1))
#define ROWS 4     /* resized horizontally at once, so that weights are loaded once for all */
#define PADDING 32 /* bytes that may be read beyond the last row */

static uint8_t clip(int32_t sum) {
    int32_t value = (sum + HALF) >> BITS;
    return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value;
}

/* ---- One direction of a resize ---- */

typedef struct {
    int in, out;      /* sizes; where they are equal the pass is skipped and the rest is unset */
    int taps;         /* weights of an output pixel */
    int copies;       /* of each weight, one for each SIMD lane of a pixel */
    int *first;       /* [out]: the input pixel of the first weight */
    int32_t *weights; /* [out][taps][copies] */
} Pass;

static double cubic(double x) { /* Keys 1981, with a = -1/2 */
    const double a = -0.5;
    x = fabs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

/* The input pixels [begin, end) of output pixel i; reducing an image widens the kernel. */
static void pass_range(const Pass *pass, int i, int *begin, int *end) {
    double scale = (double)pass->in / pass->out, reach = 2 * fmax(scale, 1);
    double center = (i + 0.5) * scale;
    double from = center - reach + 0.5, to = center + reach + 0.5;
    *begin = from < 0 ? 0 : (int)from;
    *end = to > pass->in ? pass->in : (int)to;
}

static void pass_weights(Pass *pass, int i, double *exact) {
    double scale = (double)pass->in / pass->out, step = 1 / fmax(scale, 1);
    double center = (i + 0.5) * scale, sum = 0;
    int begin, end;
    pass_range(pass, i, &begin, &end);
    for (int x = begin; x < end; x++) sum += exact[x - begin] = cubic((x - center + 0.5) * step);
    /* All pixels have the same number of taps: at the edges the additional weights are 0. */
    int first = begin < pass->in - pass->taps ? begin : pass->in - pass->taps;
    if (first < 0) first = 0;
    pass->first[i] = first;
    for (int x = begin; x < end; x++) {
        double weight = exact[x - begin];
        if (sum != 0) weight /= sum;
        int32_t fixed = (int32_t)(weight * (1 << BITS) + (weight < 0 ? -0.5 : 0.5));
        size_t at = (size_t)i * pass->taps + (x - first);
        for (int c = 0; c < pass->copies; c++) pass->weights[at * pass->copies + c] = fixed;
    }
}

static void pass_free(Pass *pass) {
    free(pass->first);
    free(pass->weights);
}

/* Returns false if memory runs out. */
static bool pass_init(Pass *pass, int in, int out, int copies) {
    *pass = (Pass){.in = in, .out = out, .copies = copies};
    if (in == out) return true;
    for (int i = 0; i < out; i++) {
        int begin, end;
        pass_range(pass, i, &begin, &end);
        if (end - begin > pass->taps) pass->taps = end - begin;
    }
    double *exact = malloc(sizeof(double) * pass->taps);
    if (copies > 1) pass->taps += pass->taps & 1; /* even: a register holds two pixels */
    pass->first = malloc(sizeof(int) * (size_t)out);
    pass->weights = calloc(out, sizeof(int32_t) * copies * (size_t)pass->taps);
    bool ok = exact && pass->first && pass->weights;
    for (int i = 0; ok && i < out; i++) pass_weights(pass, i, exact);
    free(exact);
    return ok;
}

static const int32_t *column_weights(const Pass *pass, int x) {
    return pass->weights + (size_t)x * pass->taps * pass->copies;
}

static void across_grey(const Pass *pass, const uint8_t *in, uint8_t *out) {
    for (int x = 0; x < pass->out; x++) {
        size_t first = pass->first[x];
        const int32_t *weights = column_weights(pass, x);
        int32_t sum = 0;
        for (int t = 0; t < pass->taps; t++) sum += in[first + t] * weights[t];
        out[x] = clip(sum);
    }
}

/* RGBX -> RGB, ROWS rows. */
static void across_rgbx(const Pass *pass, uint8_t *const *in, uint8_t *const *out) {
    for (int x = 0; x < pass->out; x++) {
        size_t first = pass->first[x];
        const int32_t *weights = column_weights(pass, x);
        for (int r = 0; r < ROWS; r++) {
            const uint8_t *pixels = in[r] + first * 4;
            int32_t sums[4] = {0};
            for (int t = 0; t < pass->taps * 4; t += 4)
                for (int c = 0; c < 4; c++) sums[c] += pixels[t + c] * weights[t + c];
            for (int c = 0; c < 3; c++) out[r][x * 3 + c] = clip(sums[c]);
        }
    }
}

/* Computes an output row of `width` bytes from `taps` rows at `in`, `stride` bytes apart. */
static void down_row(const uint8_t *in, size_t stride, const int32_t *weights, int taps,
                     uint8_t *out, size_t width) {
    for (size_t x = 0; x < width; x += 16) {
        int32_t sums[16] = {0};
        for (int t = 0; t < taps; t++)
            for (int i = 0; i < 16; i++) sums[i] += in[t * stride + x + i] * weights[t];
        for (size_t i = 0; i < 16 && x + i < width; i++) out[x + i] = clip(sums[i]);
    }
}

#if HAS_AVX2

/* Eight bytes as int32, so that the products fit. */
AVX2 static inline __m256i widen(const uint8_t *bytes) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
}

/* Two pixels at a time: the lower lanes sum the even ones, the upper lanes the odd ones. */
AVX2 static void across_rgbx_avx2(const Pass *pass, uint8_t *const *in, uint8_t *const *out) {
    for (int x = 0; x < pass->out; x++) {
        size_t first = pass->first[x];
        const int32_t *weights = column_weights(pass, x);
        __m256i sums[ROWS];
        for (int r = 0; r < ROWS; r++) sums[r] = _mm256_setzero_si256();
        for (int t = 0; t < pass->taps; t += 2) {
            __m256i weight = _mm256_loadu_si256((const __m256i *)(weights + 4 * t));
            for (int r = 0; r < ROWS; r++)
                sums[r] = _mm256_add_epi32(
                    sums[r], _mm256_mullo_epi32(widen(in[r] + (first + t) * 4), weight));
        }
        for (int r = 0; r < ROWS; r++) {
            __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums[r]),
                                        _mm256_extracti128_si256(sums[r], 1));
            sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(HALF)), BITS);
            sum = _mm_packus_epi16(_mm_packs_epi32(sum, sum), sum);
            int32_t pixel = _mm_cvtsi128_si32(sum);
            memcpy(out[r] + (size_t)x * 3, &pixel, 3);
        }
    }
}

AVX2 static void down_row_avx2(const uint8_t *in, size_t stride, const int32_t *weights, int taps,
                               uint8_t *out, size_t width) {
    for (size_t x = 0; x < width; x += 32) {
        __m256i sums[4];
        for (int i = 0; i < 4; i++) sums[i] = _mm256_set1_epi32(HALF);
        for (int t = 0; t < taps; t++) {
            __m256i weight = _mm256_set1_epi32(weights[t]);
            for (int i = 0; i < 4; i++)
                sums[i] = _mm256_add_epi32(
                    sums[i], _mm256_mullo_epi32(widen(in + t * stride + x + 8 * i), weight));
        }
        for (int i = 0; i < 4; i++) sums[i] = _mm256_srai_epi32(sums[i], BITS);
        __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]),
                                            _mm256_packs_epi32(sums[2], sums[3]));
        bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        uint8_t block[32];
        _mm256_storeu_si256((__m256i *)block, bytes);
        memcpy(out + x, block, width - x < 32 ? width - x : 32);
    }
}

static bool use_avx2(void) { return __builtin_cpu_supports("avx2"); }
#else
#define across_rgbx_avx2 across_rgbx
#define down_row_avx2 down_row
static bool use_avx2(void) { return false; }
#endif

/* The vertical pass of rows of `width` bytes, which are `stride` bytes apart in the input. */
static void resize_columns(const Pass *pass, const uint8_t *in, size_t stride, uint8_t *out,
                           size_t width) {
    for (int y = 0; y < pass->out; y++, out += width)
        (use_avx2() ? down_row_avx2 : down_row)(in + pass->first[y] * stride, stride,
                                                pass->weights + (size_t)y * pass->taps,
                                                pass->taps, out, width);
}

/* ---- Both directions, row by row ---- */

typedef struct {
    Pass across, down;
    int channels, pixel; /* bytes of a pixel of the output (RGB) and of the input (RGBX) */
    bool down_first;     /* the vertical pass comes first */
    uint8_t *rows;       /* input rows: ROWS of them, or all if down_first */
    uint8_t *middle;     /* between the passes; the same as `out` if there is no second pass */
    uint8_t *out;        /* [down.out][across.out][channels] */
    size_t row, left;    /* bytes of an input row, and those before its first used pixel */
    int held, done;      /* number of input rows in `rows`, and of those resized horizontally */
} Resizer;

static void resizer_free(Resizer *self) {
    pass_free(&self->across);
    pass_free(&self->down);
    free(self->rows);
    if (self->middle != self->out) free(self->middle);
}

/* Returns false if memory runs out. A row has `stored` pixels, used are `width` from `left` on. */
static bool resizer_init(Resizer *self, int width, int height, int left, int stored) {
    self->pixel = self->channels == 3 ? 4 : 1;
    self->row = (size_t)stored * self->pixel;
    self->left = (size_t)left * self->pixel;
    if (!pass_init(&self->across, width, self->across.out, self->pixel)) return false;
    if (!pass_init(&self->down, height, self->down.out, 1)) return false;
    self->down_first = self->down_first && self->across.taps && self->down.taps;
    size_t rows = self->down_first ? height : ROWS;
    size_t middle = self->down_first ? (size_t)self->down.out * width * self->pixel
                                     : (size_t)height * self->across.out * self->channels;
    self->rows = malloc(rows * self->row + PADDING);
    self->middle = self->down.taps ? malloc(middle + PADDING) : self->out;
    return self->rows && self->middle;
}

static void copy_row(const Resizer *self, const uint8_t *in, uint8_t *out) {
    for (size_t x = 0; x < (size_t)self->across.out; x++)
        memcpy(out + x * self->channels, in + x * self->pixel, self->channels);
}

static void resize_rows(const Resizer *self, uint8_t *in, size_t in_stride, uint8_t *out,
                        int count) {
    size_t out_stride = (size_t)self->across.out * self->channels;
    for (int y = 0; y < count; y += ROWS) {
        uint8_t *from[ROWS], *to[ROWS];
        for (int r = 0; r < ROWS; r++) { /* if fewer are left the last one is repeated */
            int at = y + r < count ? y + r : count - 1;
            from[r] = in + at * in_stride;
            to[r] = out + at * out_stride;
        }
        if (self->across.taps && self->channels == 3)
            (use_avx2() ? across_rgbx_avx2 : across_rgbx)(&self->across, from, to);
        else
            for (int r = 0; r < ROWS; r++)
                if (self->across.taps)
                    across_grey(&self->across, from[r], to[r]);
                else
                    copy_row(self, from[r], to[r]);
    }
}

/* Returns the memory to write the next input row to. */
static uint8_t *resizer_row(Resizer *self) { return self->rows + self->held * self->row; }

/* Processes the row written to resizer_row(); after the last one the output is complete. */
static void resizer_push(Resizer *self) {
    size_t out_row = (size_t)self->across.out * self->channels;
    bool last = self->done + ++self->held == self->down.in;
    if (self->down_first) {
        if (!last) return;
        size_t row = (size_t)self->across.in * self->pixel;
        resize_columns(&self->down, self->rows + self->left, self->row, self->middle, row);
        resize_rows(self, self->middle, row, self->out, self->down.out);
    } else if (self->held == ROWS || last) {
        uint8_t *to = self->middle + self->done * out_row;
        resize_rows(self, self->rows + self->left, self->row, to, self->held);
        self->done += self->held;
        self->held = 0;
        if (last && self->down.taps)
            resize_columns(&self->down, self->middle, out_row, self->out, out_row);
    }
}
