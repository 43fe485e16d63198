// Instructions of a field on one tile, forward and backward. Part of field.cc.
#pragma once

#include "field_bf16.h"
#include "field_plan.h"

namespace tkjax::TKJAX_ISA {

// sin and cos; beyond 8192, where this reduction of the argument loses digits, and for NaN and infinity, libm's.
TKJAX_INLINE void sin_cos(F x, F* sine, F* cosine) {
  F n = floor(fma(x, set1(0.636619772f), set1(0.5f)));
  n = where(abs(x) < 8192.0f, n, F{});
  F r = fma(n, set1(-1.5703125f), x);  // pi/2 in three parts; the first two products are exact
  r = fma(n, set1(-4.83751297e-4f), r);
  r = fma(n, set1(-7.54978995e-8f), r);
  F q = r * r;
  F s = fma(fma(fma(set1(-1.9515296e-4f), q, set1(8.3321609e-3f)), q, set1(-1.6666655e-1f)), q * r, r);
  F c = fma(fma(fma(set1(2.4433157e-5f), q, set1(-1.3887316e-3f)), q, set1(4.1666646e-2f)), q * q, 1.0f - 0.5f * q);
  I k = to_int(n);
  I swap = (k & 1) != 0;
  *sine = from_bits(bits(where(swap, c, s)) ^ ((k & 2) << 30));
  *cosine = from_bits(bits(where(swap, s, c)) ^ (((k + 1) & 2) << 30));
  I far = ~(abs(x) < 8192.0f);
  if (__builtin_expect(any(far), 0))
    for (int i = 0; i < W; ++i)
      if (far[i]) (*sine)[i] = std::sin(x[i]), (*cosine)[i] = std::cos(x[i]);
}

// body(i) for the vectors of a tile row.
template <typename Body>
TKJAX_INLINE void lanes(const Body& body) {
  for (int i = 0; i < TILE; i += W) body(i);
}

// Unit coordinates of plane p: D pointers into unit.
static void unit_coordinates(const FieldStep& s, int dims, const float* source, int plane, float (*unit)[TILE],
                             float** at) {
  for (int d = 0; d < dims; ++d) {
    const float* x = source + s.subset[plane][d] * TILE;
    lanes([&](int i) { store(unit[d] + i, (load(x + i) + s.a) / (2.0f * s.a)); });
    at[d] = unit[d];
  }
}

static void grid_step(const Field& f, const FieldStep& s, const float* source, float* out) {
  const GridArgs& grid = f.grid[s.grid];
  alignas(64) float unit[3][TILE];
  float* at[3];
  int64_t table = (int64_t)grid.entries * grid.features;
  for (int p = 0; p < s.planes; ++p) {
    unit_coordinates(s, grid.dims, source, p, unit, at);
    grid_encode_tile(grid, f.param[s.param] + p * table, at, out + p * grid.channels() * TILE);
  }
}

// The parts of an MLP's input that vary, neighbours in memory joined; their number.
static int segments_of(const Field& f, const FieldStep& s, const float* const* v, Segment* out) {
  int count = 0;
  for (int k = 0; k < s.inputs; ++k) {
    if (!varies(f, s, k)) continue;
    const float* x = v[s.in[k]];
    int c = f.step[s.in[k]].channels;
    if (count && out[count - 1].x + out[count - 1].k * TILE == x) out[count - 1].k += c;
    else out[count++] = {x, c};
  }
  return count;
}

// Hidden layers go to `hidden`, one after another if they are kept, else to two places in turn.
static void mlp_step(const Field& f, const FieldStep& s, const float* const* v, float* out, float* hidden, bool keep) {
  Segment in[FIELD_MAX_PARTS];
  int count = segments_of(f, s, v, in), rows = s.variable_rows;
  const MlpShape& m = s.mlp;
  for (int l = 0; l < m.layers; ++l) {
    bool last = l + 1 == m.layers;
    const float* bias = l == 0 ? (s.folded < 0 ? nullptr : f.base + s.folded)
                        : s.bias ? f.param[s.param + m.layers + l] : nullptr;
    float* y = last ? out : keep ? hidden : hidden + (l & 1) * (f.hidden / 2);
    auto product = HAVE_BF16 && f.bf16 ? layer_bf16 : layer;
    product(in, count, rows, m.widths[l + 1], f.base + s.packed[l], bias, last ? m.output : m.hidden, y);
    in[0] = {y, m.widths[l + 1]};
    count = 1;
    rows = m.widths[l + 1];
    if (keep) hidden += (int64_t)m.widths[l + 1] * TILE;
  }
}

static void pair_step(const FieldStep& s, const float* x, int xc, const float* y, int yc, float* out) {
  for (int c = 0; c < s.channels; ++c) {
    const float* a = x + (xc == 1 ? 0 : c) * TILE;
    const float* b = y + (yc == 1 ? 0 : c) * TILE;
    float* o = out + c * TILE;
    if (s.op == F_ADD) lanes([&](int i) { store(o + i, load(a + i) + load(b + i)); });
    else lanes([&](int i) { store(o + i, load(a + i) * load(b + i)); });
  }
}

constexpr float SMALLEST_SQUARE = 1e-24f;  // of a norm; below it the norm is 0 and has no gradient

static void norm_step(const FieldStep& s, int channels, const float* x, float* out) {
  lanes([&](int i) {
    F sum{};
    for (int c = 0; c < channels; ++c) {
      F v = load(x + c * TILE + i);
      sum = s.op == F_NORM ? fma(v, v, sum) : sum + abs(v);
    }
    if (s.op == F_NORM) {
      for (int l = 0; l < W; ++l) sum[l] = sum[l] < SMALLEST_SQUARE ? 0.0f : std::sqrt(sum[l]);
    }
    store(out + i, sum);
  });
}

static void freq_step(const FieldStep& s, int channels, const float* x, float* out) {
  std::memcpy(out, x, sizeof(float) * channels * TILE);
  for (int k = 0; k < s.octaves; ++k)
    for (int c = 0; c < channels; ++c) {
      float* sine = out + (channels * (1 + 2 * k) + c) * TILE;
      float* cosine = sine + channels * TILE;
      F factor = set1(std::ldexp(1.0f, k));
      lanes([&](int i) {
        F a, b;
        sin_cos(load(x + c * TILE + i) * factor, &a, &b);
        store(sine + i, a);
        store(cosine + i, b);
      });
    }
}

// v[i] = the value of step i in `out`, from the values v of its inputs.
static void run_step(const Field& f, int number, const float* const* v, float* out, float* hidden, bool keep) {
  const FieldStep& s = f.step[number];
  const float* x = s.inputs ? v[s.in[0]] : nullptr;
  int channels = s.inputs ? f.step[s.in[0]].channels : 0, n = channels * TILE;
  switch (s.op) {
    case F_GRID: return grid_step(f, s, x, out);
    case F_MLP: return mlp_step(f, s, v, out, hidden, keep);
    case F_ACT: return activate_all(s.mlp.output, x, out, n);
    case F_ADD:
    case F_MUL: return pair_step(s, x, channels, v[s.in[1]], f.step[s.in[1]].channels, out);
    case F_AFFINE:
      for (int i = 0; i < n; i += W) store(out + i, load(x + i) * s.a + s.b);
      return;
    case F_CLIP:
      for (int i = 0; i < n; i += W) {
        F a = load(x + i);
        store(out + i, where(a > s.b, set1(s.b), where(a < s.a, set1(s.a), a)));
      }
      return;
    case F_CONCAT:
      for (int k = 0; k < s.inputs; ++k) {
        int c = f.step[s.in[k]].channels;
        std::memcpy(out, v[s.in[k]], sizeof(float) * c * TILE);
        out += c * TILE;
      }
      return;
    case F_NORM:
    case F_SUM_ABS: return norm_step(s, channels, x, out);
    case F_FREQ: return freq_step(s, channels, x, out);
  }
}

// ---- backward: g[i] is the gradient of value i, null where none is needed; what is added to g of the inputs ----

static void add_rows(const float* from, float* to, int n) {
  for (int i = 0; i < n; i += W) store(to + i, load(to + i) + load(from + i));
}

// to (tc channels) += from * other, summed over channels where tc is 1.
static void pair_back(int channels, const float* from, const float* other, int oc, float* to, int tc) {
  for (int c = 0; c < channels; ++c) {
    float* t = to + (tc == 1 ? 0 : c) * TILE;
    const float* a = from + c * TILE;
    const float* b = other ? other + (oc == 1 ? 0 : c) * TILE : nullptr;
    lanes([&](int i) { store(t + i, load(t + i) + (b ? load(a + i) * load(b + i) : load(a + i))); });
  }
}

static void norm_back(const FieldStep& s, int channels, const float* x, const float* y, const float* g, float* to) {
  for (int c = 0; c < channels; ++c)
    lanes([&](int i) {
      F a = load(x + c * TILE + i), d = load(g + i), norm = load(y + i), slope;
      if (s.op == F_NORM) slope = where(norm == 0.0f, F{}, a / where(norm == 0.0f, set1(1.0f), norm));
      else slope = where(a > 0.0f, set1(1.0f), where(a < 0.0f, set1(-1.0f), a));  // NaN and 0 stay
      store(to + c * TILE + i, fma(slope, d, load(to + c * TILE + i)));
    });
}

static void freq_back(const FieldStep& s, int channels, const float* y, const float* g, float* to) {
  for (int c = 0; c < channels; ++c)
    lanes([&](int i) {
      F sum = load(to + c * TILE + i) + load(g + c * TILE + i);
      for (int k = 0; k < s.octaves; ++k) {
        int64_t at = (int64_t)(channels * (1 + 2 * k) + c) * TILE + i, next = at + channels * TILE;
        F wave = load(y + next) * load(g + at) - load(y + at) * load(g + next);
        sum = fma(wave, set1(std::ldexp(1.0f, k)), sum);
      }
      store(to + c * TILE + i, sum);
    });
}

// Steps other than grid and mlp. g[number] may be overwritten.
static void simple_back(const Field& f, int number, const float* const* v, float* const* g) {
  const FieldStep& s = f.step[number];
  float* own = g[number];
  int first = s.in[0], channels = f.step[first].channels, n = channels * TILE;
  float* to = g[first];
  switch (s.op) {
    case F_ACT:
      scale_by_slope(s.mlp.output, v[number], own, n);
      return add_rows(own, to, n);
    case F_ADD:
    case F_MUL:
      for (int k = 0; k < 2; ++k) {
        int me = s.in[k], other = s.in[1 - k];
        if (g[me])
          pair_back(s.channels, own, s.op == F_MUL ? v[other] : nullptr, f.step[other].channels, g[me],
                    f.step[me].channels);
      }
      return;
    case F_AFFINE:
      for (int i = 0; i < n; i += W) store(to + i, fma(load(own + i), set1(s.a), load(to + i)));
      return;
    case F_CLIP:
      for (int i = 0; i < n; i += W) {
        F a = load(v[first] + i);
        F d = where(a > s.b, F{}, where(a < s.a, F{}, load(own + i)));
        store(to + i, load(to + i) + d);
      }
      return;
    case F_CONCAT:
      for (int k = 0; k < s.inputs; ++k) {
        int c = f.step[s.in[k]].channels;
        if (g[s.in[k]]) add_rows(own, g[s.in[k]], c * TILE);
        own += c * TILE;
      }
      return;
    case F_NORM:
    case F_SUM_ABS: return norm_back(s, channels, v[first], v[number], own, to);
    case F_FREQ: return freq_back(s, channels, v[number], own, to);
  }
}

// Where an MLP's gradients are summed; null where they are not asked for. Outputs are padded to W, weights in panels.
struct MlpSums {
  float* weights[MLP_MAX_LAYERS];  // of the first layer, the varying rows
  float* biases[MLP_MAX_LAYERS];
};

// The temporaries of mlp_back, in floats: two gradients and one transposed gradient.
static int64_t mlp_back_scratch() { return 3ll * MLP_MAX_WIDTH * TILE; }

// `hidden` as mlp_step kept it; own gradient is overwritten.
static void mlp_back(const Field& f, int number, const float* const* v, float* const* g, const float* hidden,
                     const MlpSums& sums, float* scratch) {
  const FieldStep& s = f.step[number];
  const MlpShape& m = s.mlp;
  Segment in[FIELD_MAX_PARTS];
  int count = segments_of(f, s, v, in);
  bool inputs = false;
  for (int k = 0; k < s.inputs; ++k) inputs |= varies(f, s, k) && g[s.in[k]];
  int lowest = inputs ? -1 : 0;  // the last layer that something is asked of
  if (!inputs)
    while (lowest < m.layers && !sums.weights[lowest] && !sums.biases[lowest]) ++lowest;
  float* dyt = scratch + 2 * MLP_MAX_WIDTH * TILE;
  float* dy = g[number];
  const float* below = hidden;
  for (int l = 1; l + 1 < m.layers; ++l) below += (int64_t)m.widths[l] * TILE;  // output of the layer before the last
  scale_by_slope(m.output, v[number], dy, m.widths[m.layers] * TILE);
  for (int l = m.layers - 1; l >= 0 && l >= lowest; --l) {
    int outputs = m.widths[l + 1], ld = round_up(outputs, W);
    if (sums.weights[l] || sums.biases[l]) to_samples(dy, outputs, dyt, ld);
    if (sums.biases[l]) bias_gradient(dyt, ld, sums.biases[l]);
    if (sums.weights[l] && l > 0) weight_gradient(below, m.widths[l], dyt, ld, sums.weights[l], 0, m.widths[l]);
    if (sums.weights[l] && l == 0)
      for (int k = 0, row = 0; k < count; row += in[k].k, ++k)
        weight_gradient(in[k].x, in[k].k, dyt, ld, sums.weights[0], row, s.variable_rows);
    if (l == lowest) return;
    Segment from{dy, outputs};
    float* dx = scratch + (l & 1) * MLP_MAX_WIDTH * TILE;
    int rows = l ? m.widths[l] : s.variable_rows;
    layer(&from, 1, outputs, rows, f.base + s.packed_t[l], nullptr, NONE, dx);
    dy = dx;
    if (l == 0) break;
    scale_by_slope(m.hidden, below, dx, rows * TILE);
    if (l > 1) below -= (int64_t)m.widths[l - 1] * TILE;
  }
  for (int k = 0; k < s.inputs; ++k) {
    if (!varies(f, s, k)) continue;
    int c = f.step[s.in[k]].channels;
    if (g[s.in[k]]) add_rows(dy, g[s.in[k]], c * TILE);
    dy += c * TILE;
  }
}

}  // namespace tkjax::TKJAX_ISA
