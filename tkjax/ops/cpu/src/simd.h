// Vectors of W floats as compiler vector extensions: + - * / comparisons and ?: work lane by lane.
// Part of every per-ISA source, inside its namespace. Nothing is contracted except by fma().
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#ifndef TKJAX_ISA
#define TKJAX_ISA generic
#endif

namespace tkjax::TKJAX_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
constexpr int TILE = 64;  // samples that field kernels handle together

typedef float F __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));

#define TKJAX_INLINE static inline __attribute__((always_inline))

TKJAX_INLINE F set1(float x) { return x - F{}; }
TKJAX_INLINE I set1i(int32_t x) { return x - I{}; }
TKJAX_INLINE U set1u(uint32_t x) { return x - U{}; }

TKJAX_INLINE F load(const float* p) {
  F v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
TKJAX_INLINE I loadi(const int32_t* p) {
  I v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
TKJAX_INLINE void store(float* p, F v) { std::memcpy(p, &v, sizeof v); }
TKJAX_INLINE void storei(int32_t* p, I v) { std::memcpy(p, &v, sizeof v); }

TKJAX_INLINE F to_float(I v) { return __builtin_convertvector(v, F); }
TKJAX_INLINE I to_int(F v) { return __builtin_convertvector(v, I); }  // truncates; the caller keeps v within range
TKJAX_INLINE I bits(F v) { return (I)v; }
TKJAX_INLINE F from_bits(I v) { return (F)v; }
TKJAX_INLINE F where(I mask, F a, F b) { return mask ? a : b; }  // mask lanes are 0 or -1
TKJAX_INLINE I wherei(I mask, I a, I b) { return mask ? a : b; }

// b where either is NaN, as the SSE instructions do.
TKJAX_INLINE F min(F a, F b) { return a < b ? a : b; }
TKJAX_INLINE F max(F a, F b) { return a > b ? a : b; }
TKJAX_INLINE F abs(F v) { return from_bits(bits(v) & 0x7fffffff); }

#if defined(__AVX512F__)
TKJAX_INLINE F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
TKJAX_INLINE F floor(F v) { return (F)_mm512_roundscale_ps((__m512)v, 0x09); }
TKJAX_INLINE F gather(const float* base, I index) { return (F)_mm512_i32gather_ps((__m512i)index, base, 4); }
TKJAX_INLINE bool any(I mask) { return _mm512_movepi32_mask((__m512i)mask) != 0; }
#elif defined(__AVX2__)
TKJAX_INLINE F fma(F a, F b, F c) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
TKJAX_INLINE F floor(F v) { return (F)_mm256_floor_ps((__m256)v); }
TKJAX_INLINE F gather(const float* base, I index) { return (F)_mm256_i32gather_ps(base, (__m256i)index, 4); }
TKJAX_INLINE bool any(I mask) { return _mm256_movemask_ps((__m256)mask) != 0; }
#else
TKJAX_INLINE F fma(F a, F b, F c) {
#if defined(__ARM_NEON)
  return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
TKJAX_INLINE F floor(F v) {
  F t = to_float(to_int(v));
  F down = t > v ? t - 1.0f : t;
  return abs(v) < 8388608.0f ? down : v;  // beyond 2**23, and for NaN, v itself
}
TKJAX_INLINE F gather(const float* base, I index) {
  F out;
  for (int i = 0; i < W; ++i) out[i] = base[index[i]];
  return out;
}
TKJAX_INLINE bool any(I mask) {
  int32_t all = 0;
  for (int i = 0; i < W; ++i) all |= mask[i];
  return all != 0;
}
#endif

// x = n ln 2 + r; returns q with e**r = 1 + r + q r r. The caller keeps |x| within 104.
TKJAX_INLINE F exp_split(F x, F* n, F* r) {
  *n = floor(fma(x, set1(1.44269504088896341f), set1(0.5f)));
  *r = fma(*n, set1(-0.693359375f), x);
  *r = fma(*n, set1(2.12194440e-4f), *r);
  F q = fma(set1(1.9875691500e-4f), *r, set1(1.3981999507e-3f));
  q = fma(q, *r, set1(8.3334519073e-3f));
  q = fma(q, *r, set1(4.1665795894e-2f));
  q = fma(q, *r, set1(1.6666665459e-1f));
  return fma(q, *r, set1(5.0000001201e-1f));
}

// e**x to 2 units in the last place; 0 below -104, infinity above 88.73, NaN for NaN.
TKJAX_INLINE F exp(F x) {
  F clamped = min(max(x, set1(-104.0f)), set1(89.0f));  // NaN becomes the bound; restored below
  F n, r, q = exp_split(clamped, &n, &r);
  F p = fma(q, r * r, r + 1.0f);
  // 2**n in two factors, so that results below the normal range round once and 2**128 overflows to infinity.
  I k = to_int(n), half = k >> 1;
  F scaled = p * from_bits((half + 127) << 23) * from_bits((k - half + 127) << 23);
  return x != x ? x : scaled;
}

// Bit i is set where lane i of the mask is.
TKJAX_INLINE uint32_t lane_bits(I mask) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps((__m256)mask));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps((__m128)mask));
#else
  uint32_t out = 0;
  for (int i = 0; i < W; ++i) out |= static_cast<uint32_t>(mask[i] & 1) << i;
  return out;
#endif
}

}  // namespace tkjax::TKJAX_ISA
