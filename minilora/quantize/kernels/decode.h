// 4-bit codes to numbers: level * scale in fp32, with the bits of the plain version.
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// Sixteen bytes: the numbers of their higher halves into `first`, of their lower halves into
// `second`. levels: (16,), what a code means.
static inline void decode(const uint8_t* bytes, const float* levels, float scale, float* first, float* second) {
#if defined(__AVX512F__)
    const __m512 table = _mm512_loadu_ps(levels), factor = _mm512_set1_ps(scale);
    const __m512i byte = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)bytes));
    const __m512i high = _mm512_srli_epi32(byte, 4);  // of an index only the low four bits count
    _mm512_storeu_ps(first, _mm512_mul_ps(_mm512_permutexvar_ps(high, table), factor));
    _mm512_storeu_ps(second, _mm512_mul_ps(_mm512_permutexvar_ps(byte, table), factor));
#else
    for (int i = 0; i < 16; i++) {
        first[i] = levels[bytes[i] >> 4] * scale;
        second[i] = levels[bytes[i] & 15] * scale;
    }
#endif
}

static inline void store(float* out, float number) { *out = number; }

// In bf16, the upper half of fp32's bits: to the nearest, of two equally near to the even one.
static inline void store(uint16_t* out, float number) {
    uint32_t bits;
    std::memcpy(&bits, &number, 4);
    *out = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

// packed (blocks, block / 2), absmax (blocks,) → out (blocks, block)
template <typename Number>
static void decode_blocks(const uint8_t* packed, const float* levels, const float* absmax, int64_t blocks,
                          int64_t block, Number* out, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t b = 0; b < blocks; b++) {
        const uint8_t* bytes = packed + b * (block / 2);
        Number* to = out + b * block;
        int64_t j = 0;
        for (; j + 16 <= block / 2; j += 16) {
            float first[16], second[16];
            decode(bytes + j, levels, absmax[b], first, second);
            for (int i = 0; i < 16; i++) {
                store(to + 2 * (j + i), first[i]);
                store(to + 2 * (j + i) + 1, second[i]);
            }
        }
        for (; j < block / 2; j++) {
            store(to + 2 * j, levels[bytes[j] >> 4] * absmax[b]);
            store(to + 2 * j + 1, levels[bytes[j] & 15] * absmax[b]);
        }
    }
}

extern "C" void decode_fp32(const uint8_t* packed, const float* levels, const float* absmax, int64_t blocks,
                            int64_t block, float* out, int64_t threads) {
    decode_blocks(packed, levels, absmax, blocks, block, out, threads);
}

extern "C" void decode_bf16(const uint8_t* packed, const float* levels, const float* absmax, int64_t blocks,
                            int64_t block, uint16_t* out, int64_t threads) {
    decode_blocks(packed, levels, absmax, blocks, block, out, threads);
}
