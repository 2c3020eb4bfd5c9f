// A few rows of x times a weight, dense or packed in 4 bits, with bias and adapter.
//
// A row of a packed weight is decoded where the product needs it, in the processor's first cache,
// and thrown away: the memory is read once and holds an eighth of the bytes of fp32. product.py
// says the rest.
#include <cstdint>
#include <vector>

#include "quantize/kernels/decode.h"

// Sixteen numbers that are computed with as one; GCC and Clang cut them to what the processor has.
typedef float Sixteen __attribute__((vector_size(64), aligned(4), may_alias));

struct Matrix {                // W (out, in)
    int64_t out, in;
    const float* dense;        // (out, in), or null where W is packed
    const uint8_t* packed;     // (out, in / 2): two codes a byte, the first one high
    const float* levels;       // (16,): what a code means
    int64_t block;             // neighbours in a row that share a scale
    const float* absmax;       // (out, in / block): the scales, or null where they are nested
    const uint8_t* codes;      // (out, in / block): the scales in 8 bits, to be read by
    const float* nested;       //   (256,): what such a code means
    const float* outer;        //   their own scales, one for each nested_block of them
    int64_t nested_block;
    float offset;
    const float* bias;         // (out,) or null
    int64_t rank;              // of an adapter; 0: none
    const float *A, *B;        // (rank, in), (out, rank)
    float scale;
};

// Whether a row is decoded with its numbers at even places first, then those at odd ones. So two
// codes of a byte need not be put side by side; x is turned once instead.
static bool turned(const Matrix& W) { return W.dense == nullptr; }

static void turn(const float* x, int64_t size, float* out) {
    for (int64_t i = 0; i < size / 2; i++) {
        out[i] = x[2 * i];
        out[size / 2 + i] = x[2 * i + 1];
    }
}

static float scale_of(const Matrix& W, int64_t block) {
    if (W.absmax) return W.absmax[block];
    // volatile: rounded before the sum, as when the scales are decoded by themselves
    volatile const float spread = W.nested[W.codes[block]] * W.outer[block / W.nested_block];
    return spread + W.offset;
}

// Row `index` of W: where it stands, or decoded into `memory` (in,), turned.
static const float* row_of(const Matrix& W, int64_t index, float* memory) {
    if (W.dense) return W.dense + index * W.in;
    const int64_t half = W.in / 2, part = W.block / 2, blocks = W.in / W.block;
    const uint8_t* bytes = W.packed + index * half;
    for (int64_t b = 0; b < blocks; b++) {
        const float scale = scale_of(W, index * blocks + b);
        for (int64_t j = b * part; j < (b + 1) * part; j += 16)
            decode(bytes + j, W.levels, scale, memory + j, memory + half + j);
    }
    return memory;
}

static float dot(const float* a, const float* b, int64_t size) {
    Sixteen sums[4] = {};  // one after the other: a sum waits four cycles for itself
    int64_t i = 0;
    for (; i + 64 <= size; i += 64)
        for (int k = 0; k < 4; k++)
            sums[k] += *(const Sixteen*)(a + i + 16 * k) * *(const Sixteen*)(b + i + 16 * k);
    const Sixteen all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float total = 0;
    for (int k = 0; k < 16; k++) total += all[k];
    for (; i < size; i++) total += a[i] * b[i];
    return total;
}

// y (rows, out) = x Wᵀ + bias + ((x Aᵀ) Bᵀ) scale, or that added to y. x: (rows, in).
static void multiply(const Matrix& W, const float* x, int64_t rows, float* y, bool add, int64_t threads) {
    std::vector<float> low(rows * W.rank), other(turned(W) ? rows * W.in : 0);  // x Aᵀ; x turned
    for (int64_t n = 0; n < rows; n++) {
        for (int64_t k = 0; k < W.rank; k++)
            low[n * W.rank + k] = dot(x + n * W.in, W.A + k * W.in, W.in);
        if (turned(W)) turn(x + n * W.in, W.in, other.data() + n * W.in);
    }
    const float* read = turned(W) ? other.data() : x;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<float> memory(turned(W) ? W.in : 0);
#pragma omp for schedule(static)
        for (int64_t o = 0; o < W.out; o++) {
            const float* row = row_of(W, o, memory.data());
            for (int64_t n = 0; n < rows; n++) {
                float sum = dot(row, read + n * W.in, W.in);
                if (W.bias) sum += W.bias[o];
                if (W.rank) sum += dot(W.B + o * W.rank, low.data() + n * W.rank, W.rank) * W.scale;
                y[n * W.out + o] = add ? y[n * W.out + o] + sum : sum;
            }
        }
    }
}

extern "C" void product(const Matrix* W, const float* x, int64_t rows, float* y, int64_t threads) {
    multiply(*W, x, rows, y, false, threads);
}
