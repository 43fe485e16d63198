// Products with operands rounded to bfloat16 and float32 sums, for pictures, on processors with AVX512_BF16: an
// instruction there does two multiply-adds a lane. Part of field.cc.
//
// Two rows of a tile lie in one 32-bit lane: the even row in the low half. Weights likewise, so that pairs of rows of a
// kernel take the place of rows in the panels of pack_weights and fit in the same memory.
#pragma once

#include "field_mlp.h"

namespace tkjax::TKJAX_ISA {

#if defined(__AVX512F__) && (defined(__clang__) || __GNUC__ >= 10)
#define TKJAX_BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))

constexpr bool HAVE_BF16 = true;

// To nearest, ties to even; NaN stays one.
TKJAX_INLINE uint32_t to_bf16(float x) {
  uint32_t v;
  std::memcpy(&v, &x, sizeof v);
  return x != x ? 0x7fc0u : (v + 0x7fff + (v >> 16 & 1)) >> 16;
}

// Rows `rows[0 … k_count)` of w [.][ld] in panels over M outputs: out[panel][pair][r].
static void pack_weights_bf16(const float* w, int ld, const int32_t* rows, int k_count, int m_count, float* out) {
  uint32_t* at = reinterpret_cast<uint32_t*>(out);
  for (int m = 0; m < m_count; m += R) {
    int width = m_count - m < R ? m_count - m : R;
    for (int k = 0; k < k_count; k += 2)
      for (int r = 0; r < width; ++r) {
        uint32_t even = to_bf16(w[(int64_t)rows[k] * ld + m + r]);
        uint32_t odd = k + 1 < k_count ? to_bf16(w[(int64_t)rows[k + 1] * ld + m + r]) : 0;
        *at++ = even | odd << 16;
      }
  }
}

TKJAX_BF16 static inline __m512i pair_rows(const float* even, const float* odd) {
  __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(even)));
  __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(odd)));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// The rows of the segments as pairs [ceil(K/2)][64].
TKJAX_BF16 static void to_pairs(const Segment* segments, int count, uint32_t* out) {
  alignas(64) static const float zeros[TILE] = {};
  const float* even = nullptr;
  for (int i = 0; i <= count; ++i) {
    const int rows = i < count ? segments[i].k : even ? 1 : 0;  // at last a row of zeros beside an odd one
    for (int k = 0; k < rows; ++k) {
      const float* row = i < count ? segments[i].x + k * TILE : zeros;
      if (!even) {
        even = row;
        continue;
      }
      for (int s = 0; s < TILE; s += W) _mm512_storeu_si512(out + s, pair_rows(even + s, row + s));
      out += TILE;
      even = nullptr;
    }
  }
}

template <int RR, int A>
TKJAX_BF16 static void product_panel_bf16(const uint32_t* x, int pairs, const uint32_t* w, const float* bias, float* y) {
  __m512 sum[RR][4];
  for (int r = 0; r < RR; ++r)
    for (int v = 0; v < 4; ++v) sum[r][v] = _mm512_set1_ps(bias ? bias[r] : 0.0f);
  for (int k = 0; k < pairs; ++k, x += TILE, w += RR) {
    __m512bh xv[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) xv[v] = (__m512bh)_mm512_loadu_si512(x + v * W);
#pragma GCC unroll 6
    for (int r = 0; r < RR; ++r) {
      __m512bh b = (__m512bh)_mm512_set1_epi32(static_cast<int>(w[r]));
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], xv[v], b);
    }
  }
  for (int r = 0; r < RR; ++r)
    for (int v = 0; v < 4; ++v) store(y + r * TILE + v * W, activate<A>((F)sum[r][v]));
}

template <int A>
static void product_bf16(const uint32_t* x, int pairs, int m_count, const uint32_t* w, const float* bias, float* y) {
  int m = 0;
  for (; m + R <= m_count; m += R, w += R * pairs)
    product_panel_bf16<R, A>(x, pairs, w, bias ? bias + m : nullptr, y + m * TILE);
  const float* b = bias ? bias + m : nullptr;
  switch (m_count - m) {
    case 1: return product_panel_bf16<1, A>(x, pairs, w, b, y + m * TILE);
    case 2: return product_panel_bf16<2, A>(x, pairs, w, b, y + m * TILE);
    case 3: return product_panel_bf16<3, A>(x, pairs, w, b, y + m * TILE);
    case 4: return product_panel_bf16<4, A>(x, pairs, w, b, y + m * TILE);
    case 5: return product_panel_bf16<5, A>(x, pairs, w, b, y + m * TILE);
  }
}

// `layer` of field_mlp.h, w packed by pack_weights_bf16.
static void layer_bf16(const Segment* segments, int count, int k_count, int m_count, const float* w, const float* bias,
                       int activation, float* y) {
  alignas(64) uint32_t x[(MLP_MAX_WIDTH + 1) / 2 * TILE];
  to_pairs(segments, count, x);
  const uint32_t* pairs = reinterpret_cast<const uint32_t*>(w);
  if (activation == RELU) return product_bf16<RELU>(x, (k_count + 1) / 2, m_count, pairs, bias, y);
  product_bf16<NONE>(x, (k_count + 1) / 2, m_count, pairs, bias, y);
  activate_all(activation, y, y, m_count * TILE);
}

#else
constexpr bool HAVE_BF16 = false;
static inline void pack_weights_bf16(const float*, int, const int32_t*, int, int, float*) {}
static inline void layer_bf16(const Segment*, int, int, int, const float*, const float*, int, float*) {}
#endif

}  // namespace tkjax::TKJAX_ISA
