// Small matrix products over tiles of 64 samples, activations, and the packing of weights. Part of per-ISA sources.
//
// A tile holds values feature by feature: x[k][64]. A product y[m] = sum_k w[k][m] x[k] keeps R outputs times NV vectors
// of samples in registers; weights are packed once per call into panels [K][R] of R outputs, so that they are read in
// order. Gradients of inputs are products with the transposed weights; gradients of weights sum over the samples of a
// tile, with the output gradient transposed to [64][M].
#pragma once

#include <cstddef>

#include "simd.h"

namespace tkjax {

constexpr int MLP_MAX_LAYERS = 12;
constexpr int MLP_MAX_WIDTH = 512;

enum Activation : int32_t { NONE, RELU, LEAKY_RELU, SIGMOID, TANH, EXP, TRUNC_EXP, SOFTPLUS, ACTIVATIONS };

// widths[0 … layers]; activations after hidden layers and after the last.
struct MlpShape {
  int32_t layers;
  int32_t widths[MLP_MAX_LAYERS + 1];
  int32_t hidden, output;
};

}  // namespace tkjax

namespace tkjax::TKJAX_ISA {

constexpr int R = 6;                 // outputs of a panel
constexpr int NV = W == 16 ? 4 : 2;  // vectors of samples beside them: R * NV sums in registers

constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

// ---- activations ----

TKJAX_INLINE F sigmoid(F x) { return 1.0f / (1.0f + exp(-x)); }

// expm1 for arguments at most 0, which is all that tanh and softplus need.
TKJAX_INLINE F expm1_negative(F x) {
  F p = set1(1.0f / 5040);  // Taylor up to -0.35: the first term left out is below 1e-8 of x
  p = fma(p, x, set1(1.0f / 720));
  p = fma(p, x, set1(1.0f / 120));
  p = fma(p, x, set1(1.0f / 24));
  p = fma(p, x, set1(1.0f / 6));
  p = fma(p, x, set1(0.5f));
  p = fma(p * x, x, x);
  return where(x > -0.35f, p, exp(x) - 1.0f);  // NaN takes the second
}

// tanh |x| = (1 - e) / (1 + e) with e = exp(-2 |x|).
TKJAX_INLINE F tanh(F x) {
  F m = expm1_negative(-2.0f * abs(x));
  F t = -m / (m + 2.0f);
  return from_bits(bits(t) | (bits(x) & (int32_t)0x80000000));
}

// log(1 + u), 0 <= u <= 1: with s = u / (u + 2), 2 artanh s = 2 s (1 + s^2/3 + s^4/5 + …), s <= 1/3.
TKJAX_INLINE F log1p_unit(F u) {
  F s = u / (u + 2.0f), q = s * s;
  F p = set1(1.0f / 15);
  p = fma(p, q, set1(1.0f / 13));
  p = fma(p, q, set1(1.0f / 11));
  p = fma(p, q, set1(1.0f / 9));
  p = fma(p, q, set1(1.0f / 7));
  p = fma(p, q, set1(1.0f / 5));
  p = fma(p, q, set1(1.0f / 3));
  F twice = s + s;
  return fma(twice * q, p, twice);
}

TKJAX_INLINE F softplus(F x) {
  F positive = where(x < 0.0f, F{}, x);  // NaN stays
  return positive + log1p_unit(exp(-abs(x)));
}

template <int A>
TKJAX_INLINE F activate(F x) {
  if constexpr (A == RELU) return where(x < 0.0f, F{}, x);
  if constexpr (A == LEAKY_RELU) return where(x < 0.0f, x * 0.02f, x);
  if constexpr (A == SIGMOID) return sigmoid(x);
  if constexpr (A == TANH) return tanh(x);
  if constexpr (A == EXP || A == TRUNC_EXP) return exp(x);
  if constexpr (A == SOFTPLUS) return softplus(x);
  return x;
}

// The derivative from the result y.
template <int A>
TKJAX_INLINE F slope(F y) {
  if constexpr (A == RELU) return where(y > 0.0f, set1(1.0f), F{});
  if constexpr (A == LEAKY_RELU) return where(y < 0.0f, set1(0.02f), set1(1.0f));
  if constexpr (A == SIGMOID) return y * (1.0f - y);
  if constexpr (A == TANH) return 1.0f - y * y;
  if constexpr (A == EXP) return y;
  if constexpr (A == TRUNC_EXP) {
    F low = where(y < 3.0590232e-7f, set1(3.0590232e-7f), y);  // exp(-15), exp(15); NaN stays
    return where(low > 3269017.4f, set1(3269017.4f), low);
  }
  if constexpr (A == SOFTPLUS) return -expm1_negative(-y);
  return set1(1.0f);
}

// body(std::integral_constant-like tag) with the activation as a compile-time number.
template <int A>
struct Tag {
  static constexpr int value = A;
};
template <typename Body>
TKJAX_INLINE void with_activation(int kind, const Body& body) {
  switch (kind) {
    case RELU: return body(Tag<RELU>{});
    case LEAKY_RELU: return body(Tag<LEAKY_RELU>{});
    case SIGMOID: return body(Tag<SIGMOID>{});
    case TANH: return body(Tag<TANH>{});
    case EXP: return body(Tag<EXP>{});
    case TRUNC_EXP: return body(Tag<TRUNC_EXP>{});
    case SOFTPLUS: return body(Tag<SOFTPLUS>{});
    default: return body(Tag<NONE>{});
  }
}

// y = a(x) for n floats (a multiple of W); may be in place.
static void activate_all(int kind, const float* x, float* y, int n) {
  with_activation(kind, [&](auto tag) {
    if (decltype(tag)::value == NONE && x == y) return;
    for (int i = 0; i < n; i += W) store(y + i, activate<decltype(tag)::value>(load(x + i)));
  });
}

// g *= a'(…), from y = a(…).
static void scale_by_slope(int kind, const float* y, float* g, int n) {
  if (kind == NONE) return;
  with_activation(kind, [&](auto tag) {
    constexpr int A = decltype(tag)::value;
    for (int i = 0; i < n; i += W) {
      F d = load(g + i);
      if constexpr (A == RELU) {
        store(g + i, where(load(y + i) > 0.0f, d, F{}));  // 0, not 0 * infinity
      } else {
        store(g + i, d * slope<A>(load(y + i)));
      }
    }
  });
}

// ---- products ----

// Rows x[0 … k) of 64 floats that take part in a product; several parts make one input.
struct Segment {
  const float* x;
  int k;
};

// w [*][ld], of which the rows `rows` [K] take part -> panels over M outputs: out[panel][k][r].
static void pack_weights(const float* w, int ld, const int32_t* rows, int k_count, int m_count, float* out) {
  for (int m = 0; m < m_count; m += R) {
    int width = m_count - m < R ? m_count - m : R;
    for (int k = 0; k < k_count; ++k)
      for (int r = 0; r < width; ++r) *out++ = w[rows[k] * ld + m + r];
  }
}

// The transpose, for gradients of inputs: panels over the rows, out[panel][m][r].
static void pack_transposed(const float* w, int ld, const int32_t* rows, int k_count, int m_count, float* out) {
  for (int k = 0; k < k_count; k += R) {
    int width = k_count - k < R ? k_count - k : R;
    for (int m = 0; m < m_count; ++m)
      for (int r = 0; r < width; ++r) *out++ = w[rows[k + r] * ld + m];
  }
}

// One panel of RR outputs. Sums start at bias (null: 0), or with ADD at what y holds.
template <int RR, int A, bool ADD>
static void product_panel(const Segment* segments, int count, const float* w, const float* bias, float* y) {
  for (int s = 0; s < TILE; s += NV * W) {
    F sum[RR][NV];
    for (int r = 0; r < RR; ++r)
      for (int v = 0; v < NV; ++v) sum[r][v] = ADD ? load(y + r * TILE + s + v * W) : set1(bias ? bias[r] : 0.0f);
    const float* wk = w;
    for (int i = 0; i < count; ++i) {
      const float* x = segments[i].x + s;
      for (int k = 0; k < segments[i].k; ++k, x += TILE, wk += RR) {
        F xv[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) xv[v] = load(x + v * W);
#pragma GCC unroll 6
        for (int r = 0; r < RR; ++r) {
          F b = set1(wk[r]);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) sum[r][v] = fma(b, xv[v], sum[r][v]);
        }
      }
    }
    for (int r = 0; r < RR; ++r)
      for (int v = 0; v < NV; ++v) store(y + r * TILE + s + v * W, activate<A>(sum[r][v]));
  }
}

template <int A, bool ADD>
static void product(const Segment* segments, int count, int k_count, int m_count, const float* w, const float* bias,
                    float* y) {
  int m = 0;
  for (; m + R <= m_count; m += R, w += R * k_count)
    product_panel<R, A, ADD>(segments, count, w, bias ? bias + m : nullptr, y + m * TILE);
  const float* b = bias ? bias + m : nullptr;
  switch (m_count - m) {
    case 1: return product_panel<1, A, ADD>(segments, count, w, b, y + m * TILE);
    case 2: return product_panel<2, A, ADD>(segments, count, w, b, y + m * TILE);
    case 3: return product_panel<3, A, ADD>(segments, count, w, b, y + m * TILE);
    case 4: return product_panel<4, A, ADD>(segments, count, w, b, y + m * TILE);
    case 5: return product_panel<5, A, ADD>(segments, count, w, b, y + m * TILE);
  }
}

// Rows are 256 bytes apart, so the rows of one block of samples share a quarter of the sets of an L1 cache of 32 KB: more
// than WIDE of them push each other out. Blocks of wide layers are copied to rows that are neighbours, and all panels
// read the copy. Sums run in the same order, so the bits are those of product().
constexpr int WIDE = 128;

template <int RR, int A>
static void wide_panel(const float* x, int k_count, const float* w, const float* bias, float* y) {
  F sum[RR][NV];
  for (int r = 0; r < RR; ++r)
    for (int v = 0; v < NV; ++v) sum[r][v] = set1(bias ? bias[r] : 0.0f);
  for (int k = 0; k < k_count; ++k, x += NV * W, w += RR) {
    F xv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) xv[v] = load(x + v * W);
#pragma GCC unroll 6
    for (int r = 0; r < RR; ++r) {
      F b = set1(w[r]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[r][v] = fma(b, xv[v], sum[r][v]);
    }
  }
  for (int r = 0; r < RR; ++r)
    for (int v = 0; v < NV; ++v) store(y + r * TILE + v * W, activate<A>(sum[r][v]));
}

template <int A>
static __attribute__((noinline)) void wide_product(const Segment* segments, int count, int k_count, int m_count,
                                                   const float* weights, const float* bias, float* y) {
  alignas(64) float block[MLP_MAX_WIDTH * NV * W];
  for (int s = 0; s < TILE; s += NV * W, y += NV * W) {
    float* to = block;
    for (int i = 0; i < count; ++i)
      for (int k = 0; k < segments[i].k; ++k)
        for (int v = 0; v < NV; ++v, to += W) store(to, load(segments[i].x + k * TILE + s + v * W));
    const float* w = weights;
    int m = 0;
    for (; m + R <= m_count; m += R, w += R * k_count)
      wide_panel<R, A>(block, k_count, w, bias ? bias + m : nullptr, y + m * TILE);
    const float* b = bias ? bias + m : nullptr;
    switch (m_count - m) {
      case 1: wide_panel<1, A>(block, k_count, w, b, y + m * TILE); break;
      case 2: wide_panel<2, A>(block, k_count, w, b, y + m * TILE); break;
      case 3: wide_panel<3, A>(block, k_count, w, b, y + m * TILE); break;
      case 4: wide_panel<4, A>(block, k_count, w, b, y + m * TILE); break;
      case 5: wide_panel<5, A>(block, k_count, w, b, y + m * TILE); break;
    }
  }
}

// y[m][64] = a(bias[m] + sum_k w[k][m] x[k]), w packed over all rows of the segments.
static void layer(const Segment* segments, int count, int k_count, int m_count, const float* w, const float* bias,
                  int activation, float* y) {
  if (NV * W < TILE && k_count > WIDE) {  // with AVX-512 a block is the whole tile
    if (activation == RELU) return wide_product<RELU>(segments, count, k_count, m_count, w, bias, y);
    wide_product<NONE>(segments, count, k_count, m_count, w, bias, y);
    return activate_all(activation, y, y, m_count * TILE);
  }
  if (activation == RELU) return product<RELU, false>(segments, count, k_count, m_count, w, bias, y);
  product<NONE, false>(segments, count, k_count, m_count, w, bias, y);
  activate_all(activation, y, y, m_count * TILE);
}

// ---- transposes and weight gradients ----

// Lane l of the result is number index[l] of a's lanes followed by b's.
TKJAX_INLINE F shuffle(F a, F b, I index) {
#if defined(__clang__)  // its shuffle takes indices as arguments; this loop becomes one
  F out;
  for (int l = 0; l < W; ++l) out[l] = index[l] < W ? a[index[l]] : b[index[l] - W];
  return out;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// Rows of W lanes: lane j of row i <-> lane i of row j.
TKJAX_INLINE void transpose_block(F* r) {
#pragma GCC unroll 4
  for (int h = 1; h < W; h *= 2) {
    I low, high;
    for (int l = 0; l < W; ++l) {
      low[l] = l & h ? l - h + W : l;
      high[l] = l & h ? l + W : l + h;
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
      if (!(i & h)) {
        F a = r[i], b = r[i + h];
        r[i] = shuffle(a, b, low);
        r[i + h] = shuffle(a, b, high);
      }
  }
}

// Columns of a transposed gradient lie in panels [64][width] one after another, as many of NV * W columns as there are,
// then narrower ones; sums of weight gradients likewise, [rows][width]. What a panel reads is then neighbours in memory;
// as a part of long rows its lines would push each other out of the L1 cache.
TKJAX_INLINE int panel_width(int left) { return left >= NV * W ? NV * W : left >= 2 * W ? 2 * W : W; }

// x [C][64] -> panels of ld columns, ld >= C a multiple of W; channels beyond C become zero.
static void to_samples(const float* x, int channels, float* out, int ld) {
  for (int m = 0, width; m < ld; m += width, out += width * TILE) {
    width = panel_width(ld - m);
    for (int c = 0; c < width; c += W)
      for (int s = 0; s < TILE; s += W) {
        F r[W];
        for (int i = 0; i < W; ++i) r[i] = m + c + i < channels ? load(x + (m + c + i) * TILE + s) : F{};
        transpose_block(r);
        for (int i = 0; i < W; ++i) store(out + (s + i) * width + c, r[i]);
      }
  }
}

// dw [RR][width] += the products of RR rows x with a panel of NN vectors. Meanwhile the sums that come next are fetched:
// those of a wide layer do not stay in the L2 cache.
template <int RR, int NN>
static void weight_block(const float* x, const float* dyt, float* dw) {
  F sum[RR][NN];
  for (int r = 0; r < RR; ++r)
    for (int v = 0; v < NN; ++v) sum[r][v] = load(dw + (r * NN + v) * W);
  for (int r = 0; r < RR; ++r) __builtin_prefetch(dw + (2 * RR + r) * NN * W, 1);
  for (int s = 0; s < TILE; ++s, dyt += NN * W, ++x) {
    F d[NN];
#pragma GCC unroll 4
    for (int v = 0; v < NN; ++v) d[v] = load(dyt + v * W);
#pragma GCC unroll 6
    for (int r = 0; r < RR; ++r) {
      F b = set1(x[r * TILE]);
#pragma GCC unroll 4
      for (int v = 0; v < NN; ++v) sum[r][v] = fma(b, d[v], sum[r][v]);
    }
  }
  for (int r = 0; r < RR; ++r)
    for (int v = 0; v < NN; ++v) store(dw + (r * NN + v) * W, sum[r][v]);
}

template <int NN>
static void weight_rows(const float* x, int k_count, const float* dyt, float* dw) {
  int k = 0;
  for (; k + R <= k_count; k += R) weight_block<R, NN>(x + k * TILE, dyt, dw + k * NN * W);
  for (; k + 2 <= k_count; k += 2) weight_block<2, NN>(x + k * TILE, dyt, dw + k * NN * W);
  if (k < k_count) weight_block<1, NN>(x + k * TILE, dyt, dw + k * NN * W);
}

// Rows [first, first + k_count) of dw, panels [rows][width]: dw[k][m] += sum_s x[k][s] dy[m][s], dyt from to_samples.
static void weight_gradient(const float* x, int k_count, const float* dyt, int ld, float* dw, int first, int rows) {
  for (int m = 0, width; m < ld; m += width, dyt += width * TILE, dw += width * rows) {
    width = panel_width(ld - m);
    float* to = dw + first * width;
    if (width == NV * W) weight_rows<NV>(x, k_count, dyt, to);
    else if (width == 2 * W) weight_rows<2>(x, k_count, dyt, to);
    else weight_rows<1>(x, k_count, dyt, to);
  }
}

// to[m] += row `row` of weight_gradient's panels.
static void add_panels(const float* dw, int rows, int row, int outputs, float* to) {
  int ld = round_up(outputs, W);
  for (int m = 0, width; m < outputs; m += width, dw += width * rows) {
    width = panel_width(ld - m);
    for (int c = 0; c < width && m + c < outputs; ++c) to[m + c] += dw[row * width + c];
  }
}

// db[m] += sum_s dy[m][s].
static void bias_gradient(const float* dyt, int ld, float* db) {
  for (int m = 0, width; m < ld; m += width, dyt += width * TILE) {
    width = panel_width(ld - m);
    for (int c = 0; c < width; c += W) {
      F sum = load(db + m + c);
      for (int s = 0; s < TILE; ++s) sum = sum + load(dyt + s * width + c);
      store(db + m + c, sum);
    }
  }
}

}  // namespace tkjax::TKJAX_ISA
