// One level of a grid for one tile of 64 samples: value, gradient to the points, gradient to the table.
// Part of grid_encode.cc, compiled once per instruction set.
#pragma once

#include "grid_encode.h"
#include "simd.h"

namespace tkjax::TKJAX_ISA {
namespace {

constexpr uint32_t PRIME[3] = {1u, 2654435761u, 805459861u};

// ---- lanes

#if defined(__AVX512F__)
#define TKJAX_LANES_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define TKJAX_LANES_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define TKJAX_LANES_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define TKJAX_LANES_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__)
#define TKJAX_LANES_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define TKJAX_LANES_ODD 1, 3, 5, 7, 9, 11, 13, 15
#define TKJAX_LANES_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define TKJAX_LANES_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define TKJAX_LANES_EVEN 0, 2, 4, 6
#define TKJAX_LANES_ODD 1, 3, 5, 7
#define TKJAX_LANES_LOW 0, 4, 1, 5
#define TKJAX_LANES_HIGH 2, 6, 3, 7
#endif

// Two neighbouring floats per lane, (base[i], base[i + 1]) for i = SCALE / 4 * index.
template <int SCALE>
TKJAX_INLINE void gather_pairs(const float* base, U index, F* first, F* second) {
#if defined(__AVX512F__)
  __m512i i = (__m512i)index;
  F a = (F)_mm512_i32gather_pd(_mm512_castsi512_si256(i), base, SCALE);
  F b = (F)_mm512_i32gather_pd(_mm512_extracti64x4_epi64(i, 1), base, SCALE);
#elif defined(__AVX2__)
  __m256i i = (__m256i)index;
  const double* pairs = reinterpret_cast<const double*>(base);
  F a = (F)_mm256_i32gather_pd(pairs, _mm256_castsi256_si128(i), SCALE);
  F b = (F)_mm256_i32gather_pd(pairs, _mm256_extracti128_si256(i, 1), SCALE);
#else
  float both[2 * W];
  for (int k = 0; k < W; ++k) std::memcpy(both + 2 * k, base + SCALE / 4 * static_cast<size_t>(index[k]), 8);
  F a = load(both), b = load(both + W);
#endif
  *first = __builtin_shufflevector(a, b, TKJAX_LANES_EVEN);
  *second = __builtin_shufflevector(a, b, TKJAX_LANES_ODD);
}

typedef float Four __attribute__((vector_size(16)));

TKJAX_INLINE Four load4(const float* p) {
  Four v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
TKJAX_INLINE void store4(float* p, Four v) { std::memcpy(p, &v, sizeof v); }
#if defined(__FMA__)
TKJAX_INLINE Four fma4(Four a, Four b, Four c) { return (Four)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)c); }
#else
TKJAX_INLINE Four fma4(Four a, Four b, Four c) { return a * b + c; }
#endif
typedef float Two __attribute__((vector_size(8)));

// out[c * out_row + r] = in[r * in_row + c] for r < rows, c < columns.
void transpose(const float* in, int64_t in_row, int rows, int columns, float* out, int64_t out_row) {
  int c = 0;
  for (; c + 4 <= columns; c += 4) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) {
      const float* p = in + r * in_row + c;
      Four a0 = load4(p), a1 = load4(p + in_row), a2 = load4(p + 2 * in_row), a3 = load4(p + 3 * in_row);
      Four b0 = __builtin_shufflevector(a0, a1, 0, 4, 1, 5), b1 = __builtin_shufflevector(a0, a1, 2, 6, 3, 7);
      Four b2 = __builtin_shufflevector(a2, a3, 0, 4, 1, 5), b3 = __builtin_shufflevector(a2, a3, 2, 6, 3, 7);
      float* q = out + c * out_row + r;
      store4(q, __builtin_shufflevector(b0, b2, 0, 1, 4, 5));
      store4(q + out_row, __builtin_shufflevector(b0, b2, 2, 3, 6, 7));
      store4(q + 2 * out_row, __builtin_shufflevector(b1, b3, 0, 1, 4, 5));
      store4(q + 3 * out_row, __builtin_shufflevector(b1, b3, 2, 3, 6, 7));
    }
    for (int k = c; rows % 4 && k < c + 4; ++k)
      for (int i = r; i < rows; ++i) out[k * out_row + i] = in[i * in_row + k];
  }
  for (; c < columns; ++c)
    for (int r = 0; r < rows; ++r) out[c * out_row + r] = in[r * in_row + c];
}

// Round to nearest even; NaN stays NaN.
TKJAX_INLINE uint16_t to_bfloat16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;
  return static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}
TKJAX_INLINE float from_bfloat16(uint16_t x) {
  uint32_t u = static_cast<uint32_t>(x) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

// Keeps the compiler from adding a level's offset to every index instead of once to the pointer.
#define TKJAX_KEEP(pointer) asm("" : "+r"(pointer))

// ---- one vector of samples in one level

// Corner c of a cell takes the upper neighbour along axis d where bit D-1-d of c is set.
template <int D, bool HASHED>
struct Cell {
  U term[D][2];    // what each axis adds (or xors) to the index, lower and upper neighbour
  F weight[D][2];  // and its interpolation weight
  F slope[D];      // d weight[d][1] / d coordinate

  TKJAX_INLINE int bit(int corner, int d) { return (corner >> (D - 1 - d)) & 1; }

  // coords: D pointers to coordinates within [0,1].
  TKJAX_INLINE Cell at(const GridLevel& level, bool smoothstep, const float* const* coords, int lane) {
    Cell cell;
    for (int d = 0; d < D; ++d) {
      F pos = load(coords[d] + lane) * level.scale + 0.5f, low = floor(pos), frac = pos - low;
      cell.slope[d] = set1(level.scale);
      if (smoothstep) {
        cell.slope[d] = cell.slope[d] * (6.0f * frac * (1.0f - frac));
        frac = frac * frac * (3.0f - 2.0f * frac);
      }
      cell.weight[d][0] = 1.0f - frac;
      cell.weight[d][1] = frac;
      U step = set1u(HASHED ? PRIME[d] : level.stride[d]);
      cell.term[d][0] = (U)to_int(low) * step;
      cell.term[d][1] = cell.term[d][0] + step;
    }
    return cell;
  }

  U index(int corner, U mask) const {
    U sum = term[0][bit(corner, 0)];
    for (int d = 1; d < D; ++d) sum = HASHED ? sum ^ term[d][bit(corner, d)] : sum + term[d][bit(corner, d)];
    return sum & mask;
  }

  // Product of the weights of all axes but `skip` (-1: of all).
  F product(int corner, int skip = -1) const {
    F out = set1(1.0f);
    bool first = true;
    for (int d = 0; d < D; ++d) {
      if (d == skip) continue;
      out = first ? weight[d][bit(corner, d)] : out * weight[d][bit(corner, d)];
      first = false;
    }
    return out;
  }
};

// value[corner][feature] for FEAT 1 or 2. `whole`: the index of a dense level needs no mask, so that the two
// neighbours along the first axis lie side by side.
template <int D, int FEAT, bool HASHED>
TKJAX_INLINE void fetch(const Cell<D, HASHED>& cell, const float* table, U mask, bool whole, F (*value)[FEAT]) {
  constexpr int CORNERS = 1 << D, UPPER = CORNERS / 2;
  if constexpr (FEAT == 2) {
    for (int c = 0; c < CORNERS; ++c) gather_pairs<8>(table, cell.index(c, mask), &value[c][0], &value[c][1]);
  } else if (!HASHED && whole) {
    for (int c = 0; c < UPPER; ++c) gather_pairs<4>(table, cell.index(c, mask), &value[c][0], &value[c + UPPER][0]);
  } else {
    for (int c = 0; c < CORNERS; ++c) value[c][0] = gather(table, (I)cell.index(c, mask));
  }
}

#define TKJAX_APART __attribute__((noinline))  // 12 of each: inlined into a switch they would only be harder to profile

// ---- one tile in one level. `coords` lie within [0,1]; out, dout: FEAT rows of TILE.

template <int D, int FEAT, bool HASHED>
TKJAX_APART void encode_level(const GridLevel& level, bool smoothstep, const float* table, const float* const* coords,
                              float* out) {
  constexpr int CORNERS = 1 << D;
  const U mask = set1u(level.mask);
  const bool whole = level.mask == ~0u;
  table += static_cast<size_t>(level.offset) * FEAT;
  TKJAX_KEEP(table);
  if constexpr (FEAT == 1) {
    for (int lane = 0; lane < TILE; lane += W) {
      auto cell = Cell<D, HASHED>::at(level, smoothstep, coords, lane);
      F value[CORNERS][FEAT], sum[FEAT] = {};
      fetch<D, FEAT, HASHED>(cell, table, mask, whole, value);
      for (int c = 0; c < CORNERS; ++c) {
        F weight = cell.product(c);
        for (int f = 0; f < FEAT; ++f) sum[f] = fma(weight, value[c][f], sum[f]);
      }
      for (int f = 0; f < FEAT; ++f) store(out + f * TILE + lane, sum[f]);
    }
  } else if constexpr (FEAT == 2) {
    constexpr int PAIRS = CORNERS / 2;
    alignas(64) float weight[PAIRS][TILE], last[2][TILE], rows[TILE * 2];
    alignas(64) int32_t index[CORNERS][TILE];
    for (int lane = 0; lane < TILE; lane += W) {
      auto cell = Cell<D, HASHED>::at(level, smoothstep, coords, lane);
      for (int c = 0; c < CORNERS; ++c) storei(index[c] + lane, (I)cell.index(c, mask));
      for (int c = 0; c < PAIRS; ++c) store(weight[c] + lane, cell.product(2 * c, D - 1));
      store(last[0] + lane, cell.weight[D - 1][0]);
      store(last[1] + lane, cell.weight[D - 1][1]);
    }
    for (int s = 0; s < TILE; ++s) {
      Four sum = {};
      for (int c = 0; c < PAIRS; ++c) {
        Two a, b;
        std::memcpy(&a, table + 2 * static_cast<size_t>(static_cast<uint32_t>(index[2 * c][s])), 8);
        std::memcpy(&b, table + 2 * static_cast<size_t>(static_cast<uint32_t>(index[2 * c + 1][s])), 8);
        Four v = __builtin_shufflevector(a, b, 0, 1, 2, 3);
        sum = fma4(v, weight[c][s] - Four{}, sum);
      }
      float z0 = last[0][s], z1 = last[1][s];
      Two low = __builtin_shufflevector(sum, sum, 0, 1), high = __builtin_shufflevector(sum, sum, 2, 3);
      Two r = low * z0 + high * z1;
      std::memcpy(rows + 2 * s, &r, 8);
    }
    for (int lane = 0; lane < TILE; lane += W) {
      F a = load(rows + 2 * lane), b = load(rows + 2 * lane + W);
      store(out + lane, __builtin_shufflevector(a, b, TKJAX_LANES_EVEN));
      store(out + TILE + lane, __builtin_shufflevector(a, b, TKJAX_LANES_ODD));
    }
  } else {  // a row of the table is a vector of its own: sample by sample
    alignas(64) float weight[CORNERS][TILE], rows[TILE * FEAT];
    alignas(64) int32_t index[CORNERS][TILE];
    for (int lane = 0; lane < TILE; lane += W) {
      auto cell = Cell<D, HASHED>::at(level, smoothstep, coords, lane);
      for (int c = 0; c < CORNERS; ++c) {
        store(weight[c] + lane, cell.product(c));
        storei(index[c] + lane, (I)cell.index(c, mask));
      }
    }
    for (int s = 0; s < TILE; ++s) {
      Four sum[FEAT / 4] = {};
      for (int c = 0; c < CORNERS; ++c) {
        const float* row = table + static_cast<size_t>(static_cast<uint32_t>(index[c][s])) * FEAT;
        for (int q = 0; q < FEAT / 4; ++q) sum[q] += weight[c][s] * load4(row + 4 * q);
      }
      for (int q = 0; q < FEAT / 4; ++q) store4(rows + s * FEAT + 4 * q, sum[q]);
    }
    transpose(rows, FEAT, TILE, FEAT, out, TILE);
  }
}

// dcoords[d] += slope_d * sum over corners of +-(product of the other weights) * <dout, table row>.
template <int D, int FEAT, bool HASHED>
TKJAX_APART void points_grad_level(const GridLevel& level, bool smoothstep, const float* table,
                                   const float* const* coords, const float* dout, float (*dcoords)[TILE]) {
  constexpr int CORNERS = 1 << D;
  const U mask = set1u(level.mask);
  const bool whole = level.mask == ~0u;
  table += static_cast<size_t>(level.offset) * FEAT;
  TKJAX_KEEP(table);
  for (int lane = 0; lane < TILE; lane += W) {
    auto cell = Cell<D, HASHED>::at(level, smoothstep, coords, lane);
    F along[CORNERS];  // <dout, row>
    if constexpr (FEAT <= 2) {
      F value[CORNERS][FEAT];
      fetch<D, FEAT, HASHED>(cell, table, mask, whole, value);
      for (int c = 0; c < CORNERS; ++c) {
        along[c] = load(dout + lane) * value[c][0];
        if (FEAT == 2) along[c] = fma(load(dout + (FEAT - 1) * TILE + lane), value[c][FEAT - 1], along[c]);
      }
    } else {
      for (int c = 0; c < CORNERS; ++c) {
        U row = cell.index(c, mask) * static_cast<uint32_t>(FEAT);
        along[c] = F{};
        for (int f = 0; f < FEAT; f += 2) {
          F a, b;
          gather_pairs<4>(table + f, row, &a, &b);
          along[c] = fma(load(dout + f * TILE + lane), a, along[c]);
          along[c] = fma(load(dout + (f + 1) * TILE + lane), b, along[c]);
        }
      }
    }
    for (int d = 0; d < D; ++d) {
      F sum = F{};
      for (int c = 0; c < CORNERS; ++c) {
        if (Cell<D, HASHED>::bit(c, d)) continue;
        int upper = c | (1 << (D - 1 - d));
        sum = fma(cell.product(c, d), along[upper] - along[c], sum);
      }
      store(dcoords[d] + lane, fma(cell.slope[d], sum, load(dcoords[d] + lane)));
    }
  }
}

// dtable[row of each corner] += weight * dout, whose FEAT rows are `dout_row` apart; zero in lanes that do not count.
template <int D, int FEAT, bool HASHED>
TKJAX_APART void table_grad_level(const GridLevel& level, bool smoothstep, const float* const* coords,
                                  const float* dout, int64_t dout_row, float* dtable) {
  constexpr int CORNERS = 1 << D;
  alignas(64) int32_t index[CORNERS][TILE];
  alignas(64) float change[CORNERS][TILE * (FEAT == 2 ? 2 : 1)];  // weight * dout; for FEAT > 2 the weight alone
  const U mask = set1u(level.mask);
  for (int lane = 0; lane < TILE; lane += W) {
    auto cell = Cell<D, HASHED>::at(level, smoothstep, coords, lane);
    for (int c = 0; c < CORNERS; ++c) {
      storei(index[c] + lane, (I)cell.index(c, mask));
      F weight = cell.product(c);
      if constexpr (FEAT == 1) {
        store(change[c] + lane, weight * load(dout + lane));
      } else if constexpr (FEAT == 2) {
        F a = weight * load(dout + lane), b = weight * load(dout + dout_row + lane);
        store(change[c] + 2 * lane, __builtin_shufflevector(a, b, TKJAX_LANES_LOW));
        store(change[c] + 2 * lane + W, __builtin_shufflevector(a, b, TKJAX_LANES_HIGH));
      } else {
        store(change[c] + lane, weight);
      }
    }
  }
  alignas(64) float rows[FEAT > 2 ? TILE * FEAT : 1];
  if constexpr (FEAT > 2) transpose(dout, dout_row, FEAT, TILE, rows, FEAT);
  dtable += static_cast<size_t>(level.offset) * FEAT;
  TKJAX_KEEP(dtable);
  for (int s = 0; s < TILE; ++s) {
    for (int c = 0; c < CORNERS; ++c) {
      float* row = dtable + static_cast<size_t>(static_cast<uint32_t>(index[c][s])) * FEAT;
      if constexpr (FEAT == 1) {
        *row += change[c][s];
      } else if constexpr (FEAT == 2) {
        Two a, b;
        std::memcpy(&a, row, 8);
        std::memcpy(&b, change[c] + 2 * s, 8);
        a += b;
        std::memcpy(row, &a, 8);
      } else {
        for (int q = 0; q < FEAT; q += 4) store4(row + q, load4(row + q) + change[c][s] * load4(rows + s * FEAT + q));
      }
    }
  }
}

}  // namespace
}  // namespace tkjax::TKJAX_ISA
