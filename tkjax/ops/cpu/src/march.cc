#include "march.h"

#include "simd.h"

// The lattice points of one ray are handled W at a time. Leaps over empty cells would not pay: a step is about as long
// as a cell. What pays is to skip the part of the lattice that lies outside of a box around all occupied cells.

namespace tkjax::TKJAX_ISA {
namespace {

constexpr float INF = __builtin_inff();
constexpr float SMALLEST = 1.17549435e-38f;  // directions below it count as zero
constexpr int32_t LONGEST = 1 << 24;         // points of a lattice; up to here k is exact
constexpr float SLACK = 2e-6f;               // 32 units of rounding, for the position of a lattice point
constexpr int64_t RAYS_PER_TASK = 128;

struct Lanes {
  float number[W];
};

constexpr Lanes iota() {
  Lanes out{};
  for (int i = 0; i < W; ++i) out.number[i] = static_cast<float>(i);
  return out;
}
constexpr Lanes IOTA = iota();

TKJAX_INLINE float step_at(const MarchArgs& a, float t) {
  float v = t * a.dt_gamma;
  v = v > a.dt ? v : a.dt;
  return v < a.dt_max ? v : a.dt_max;
}

TKJAX_INLINE U spread(U v) {  // the 10 bits of a number to every third place
  v = (v | (v << 16)) & 0x030000FFu;
  v = (v | (v << 8)) & 0x0300F00Fu;
  v = (v | (v << 4)) & 0x030C30C3u;
  return (v | (v << 2)) & 0x09249249u;
}

// Numbers of the occupancy bits of W points at distances t.
TKJAX_INLINE U bit_numbers(const MarchArgs& a, const F x[3], F t) {
  F inverse = set1(a.inverse_span[0]);
  U level = set1u(0);
  if (a.cascades > 1) {
    F steps = set1(a.dt);
    if (!a.constant_step) steps = min(max(t * a.dt_gamma, set1(a.dt)), set1(a.dt_max));
    F reach = max(max(max(abs(x[0]), abs(x[1])), abs(x[2])), steps * (0.5f * a.side));
    float span = 1.0f;
    for (int c = 1; c < a.cascades; ++c, span *= 2) {
      I beyond = reach >= span;
      inverse = where(beyond, set1(a.inverse_span[c]), inverse);
      level -= (U)beyond;
    }
  }
  U cell[3];
  const float top = a.vertex ? a.side : a.side - 1;
  for (int i = 0; i < 3; ++i) {
    F scaled = (x[i] * inverse + 1.0f) * (0.5f * a.side);
    if (a.vertex) scaled = floor(scaled + 0.5f);
    cell[i] = (U)to_int(min(max(scaled, set1(0.0f)), set1(top)));
  }
  if (a.vertex) {
    const uint32_t edge = a.side + 1;
    return (cell[0] * edge + cell[1]) * edge + cell[2];
  }
  const uint32_t cells = static_cast<uint32_t>(a.side) * a.side * a.side;
  return level * cells + (spread(cell[0]) | (spread(cell[1]) << 1) | (spread(cell[2]) << 2));
}

struct Range {
  float near, far;
};

// Where o + t d is within the box; near >= far, or NaN, on a miss.
inline Range slab(const float* box, const float* o, const float* d) {
  Range r{-INF, INF};
  for (int i = 0; i < 3; ++i) {
    if (!(std::fabs(o[i]) < INF) || !(std::fabs(d[i]) < INF)) return {INF, -INF};
    if (std::fabs(d[i]) < SMALLEST) {
      if (!(o[i] >= box[i] && o[i] <= box[i + 3])) return {INF, -INF};
      continue;
    }
    const float inverse = 1.0f / d[i];
    const float p = (box[i] - o[i]) * inverse, q = (box[i + 3] - o[i]) * inverse;
    if (p != p || q != q) return {INF, -INF};
    const float first = p < q ? p : q, last = p < q ? q : p;
    r.near = r.near > first ? r.near : first;
    r.far = r.far < last ? r.far : last;
  }
  return r;
}

// No point of the ray outside of this range can lie in an occupied cell, with what rounding may move it.
inline Range tight_range(const MarchArgs& a, const float* o, const float* d) {
  Range r{-INF, INF};
  float largest = 0;
  for (int i = 0; i < 3; ++i) largest = std::fabs(o[i]) > largest ? std::fabs(o[i]) : largest;
  const float slack = SLACK * (largest + a.bound);
  for (int i = 0; i < 3; ++i) {
    const float low = a.tight[i] - slack, high = a.tight[i + 3] + slack;
    if (d[i] == 0 && !(o[i] >= low && o[i] <= high)) return {INF, -INF};
    if (std::fabs(d[i]) < SMALLEST) continue;
    const float inverse = 1.0f / d[i];
    const float p = (low - o[i]) * inverse, q = (high - o[i]) * inverse;
    const float first = p < q ? p : q, last = p < q ? q : p;
    r.near = r.near > first ? r.near : first;
    r.far = r.far < last ? r.far : last;
  }
  return r;
}

// Successive blocks of W lattice points.
struct Lattice {
  const MarchArgs& a;
  float near, noise, t;
  int32_t k = 0;

  Lattice(const MarchArgs& args, float near_, float noise_) : a(args), near(near_), noise(noise_) {
    t = near + (a.constant_step ? a.dt : step_at(a, near)) * noise;
  }

  // Skips points that lie before `start`, not necessarily all of them.
  void skip(float start) {
    if (!(start > t)) return;
    if (a.constant_step) {
      const float points = (start - near) / a.dt * 0.999999f - 4.0f;
      if (points > 0) k = points < LONGEST ? static_cast<int32_t>(points) : LONGEST;
      t = near + a.dt * (k + noise);
    } else {
      while (t < start && k < LONGEST) advance(), ++k;
    }
  }

  void advance() {
    const float after = t + step_at(a, t);
    t = after > t ? after : INF;
  }

  F next() {
    const F steps = static_cast<float>(k) + load(IOTA.number);
    k += W;
    if (a.constant_step) {
      F points = near + a.dt * (steps + noise);
      t = near + a.dt * (k + noise);
      return where(steps < static_cast<float>(LONGEST), points, set1(INF));
    }
    float points[W];
    for (int i = 0; i < W; ++i) points[i] = t, advance();
    return where(steps < static_cast<float>(LONGEST), load(points), set1(INF));
  }
};

TKJAX_INLINE I occupied(const MarchArgs& a, const float* o, const float* d, F t) {
  F x[3];
  for (int i = 0; i < 3; ++i) x[i] = min(max(o[i] + t * d[i], set1(-a.bound)), set1(a.bound));
  const U bit = bit_numbers(a, x, t);
  const U word = (U)bits(gather(reinterpret_cast<const float*>(a.bits), (I)(bit >> 5)));
  return ((word >> (bit & 31u)) & 1u) != 0u;
}

// Where a ray is within the box, into near and far, and within the box around the occupied cells; false if nowhere.
inline bool enter(const MarchArgs& a, const float* o, const float* d, int limit, float* near, float* far,
                  Range* inside) {
  Range box = slab(a.box, o, d);
  box.near = box.near > a.t_min ? box.near : a.t_min;
  const bool hit = box.near < box.far && box.far < INF;
  *near = hit ? box.near : 0;
  *far = hit ? box.far : 0;
  if (!hit || !a.any || limit <= 0) return false;
  *inside = tight_range(a, o, d);
  return inside->near <= inside->far;
}

inline float unit(float noise) {  // NaN compares with nothing
  return std::fabs(noise) < INF ? (noise > 0 ? (noise < 1 ? noise : 1) : 0) : 0;
}

inline int march_any(const MarchArgs& a, int64_t r, const float* o, const float* d, const float* noise, int jitters,
                     int limit, float* t, float* dt, float* near, float* far) {
  if (!jitters) return march_ray(a, o + 3 * r, d + 3 * r, noise[r], limit, t, dt, near + r, far + r);
  return march_ray_jittered(a, o + 3 * r, d + 3 * r, noise + r * jitters, jitters, limit, t, dt, near + r, far + r);
}

}  // namespace

void march_prepare(MarchArgs* args) {
  MarchArgs& a = *args;
  a.constant_step = a.dt_gamma == 0 || a.dt_max == a.dt;
  double span = 1;
  for (int c = 0; c < a.cascades; ++c, span *= 2)
    a.inverse_span[c] = static_cast<float>(1.0 / (c == a.cascades - 1 ? static_cast<double>(a.bound) : span));
  for (int i = 0; i < 3; ++i) a.tight[i] = -INF, a.tight[i + 3] = INF;
  const bool blocks = !a.vertex && a.cascades == 1 && a.side >= 8;  // 8^3 cells are 64 bytes one after the other
  if (!blocks) {
    a.any = 0;
    for (int64_t i = 0; i < a.bytes && !a.any; ++i) a.any = a.bits[i] != 0;
    return;
  }
  uint32_t low[3] = {1u << 30, 1u << 30, 1u << 30}, high[3] = {0, 0, 0};
  a.any = 0;
  for (int64_t b = 0; b < a.bytes / 64; ++b) {
    uint64_t words[8], all = 0;
    std::memcpy(words, a.bits + 64 * b, 64);
    for (uint64_t w : words) all |= w;
    if (!all) continue;
    a.any = 1;
    for (int i = 0; i < 3; ++i) {
      uint32_t c = 0;
      for (int j = 0; j < 10; ++j) c |= static_cast<uint32_t>(b >> (3 * j + i) & 1) << j;
      low[i] = c < low[i] ? c : low[i];
      high[i] = c > high[i] ? c : high[i];
    }
  }
  const uint32_t edge = a.side / 8;
  for (int i = 0; i < 3 && a.any; ++i) {  // points beyond the grid are clamped into its outermost cells
    if (low[i] > 0) a.tight[i] = (2.0f * low[i] / edge - 1.0f) * a.bound;
    if (high[i] + 1 < edge) a.tight[i + 3] = (2.0f * (high[i] + 1) / edge - 1.0f) * a.bound;
  }
}

int march_ray(const MarchArgs& a, const float* o, const float* d, float noise, int limit, float* t, float* dt,
              float* near, float* far) {
  Range inside;
  if (!enter(a, o, d, limit, near, far, &inside)) return 0;
  Lattice lattice(a, *near, unit(noise));
  lattice.skip(inside.near);
  int count = 0;
  while (lattice.t < *far && lattice.t <= inside.far && lattice.k < LONGEST) {
    const F points = lattice.next();
    const I before = points < *far;
    uint32_t kept = lane_bits(occupied(a, o, d, where(before, points, set1(0.0f))) & before);
    if (!t) {
      count += __builtin_popcount(kept);
      if (count >= limit) return limit;
      continue;
    }
    if (!kept) continue;
    float values[W];
    store(values, points);
    for (; kept; kept &= kept - 1) {
      const float value = values[__builtin_ctz(kept)];
      t[count] = value;
      if (dt) dt[count] = a.constant_step ? a.dt : step_at(a, value);
      if (++count == limit) return count;
    }
  }
  return count;
}

int march_ray_jittered(const MarchArgs& a, const float* o, const float* d, const float* noise, int jitters, int limit,
                       float* t, float* dt, float* near, float* far) {
  Range inside;
  if (!enter(a, o, d, limit, near, far, &inside)) return 0;
  float at = *near;
  const auto after = [&](float v) {
    const float next = v + step_at(a, v);
    return next > v ? next : INF;
  };
  while (at < inside.near && at < *far) at = after(at);
  for (int count = 0;;) {
    if (!(at < *far && at <= inside.far)) return count;
    float values[W];
    for (int i = 0; i < W; ++i) values[i] = at, at = after(at);
    const F points = load(values);
    const I before = points < *far;
    const uint32_t kept = lane_bits(occupied(a, o, d, where(before, points, set1(0.0f))) & before);
    if (!kept) continue;
    const float value = values[__builtin_ctz(kept)];  // the points behind it will not be
    const float step = 2.0f * step_at(a, value) * unit(noise[count % jitters]);
    if (t) t[count] = value;
    if (dt) dt[count] = step;
    if (++count == limit) return count;
    at = value + step;
  }
}

void march_dense(const MarchArgs& a, int64_t rays, const float* o, const float* d, const float* noise, int jitters,
                 float* t, float* dt, int32_t* count, float* near, float* far, Pool& pool) {
  parallel_for(pool, (rays + RAYS_PER_TASK - 1) / RAYS_PER_TASK, [&](int64_t task) {
    const int64_t end = (task + 1) * RAYS_PER_TASK < rays ? (task + 1) * RAYS_PER_TASK : rays;
    for (int64_t r = task * RAYS_PER_TASK; r < end; ++r) {
      float *t_r = t + r * a.samples, *dt_r = dt + r * a.samples;
      const int n = march_any(a, r, o, d, noise, jitters, a.samples, t_r, dt_r, near, far);
      count[r] = n;
      std::memset(t_r + n, 0, sizeof(float) * (a.samples - n));
      std::memset(dt_r + n, 0, sizeof(float) * (a.samples - n));
    }
  });
}

void march_packed(const MarchArgs& a, int64_t rays, int64_t capacity, const float* o, const float* d,
                  const float* noise, int jitters, float* t, float* dt, int32_t* ray, int32_t* offset, int32_t* count,
                  float* near, float* far, int32_t* overflow, Pool& pool) {
  const int64_t tasks = (rays + RAYS_PER_TASK - 1) / RAYS_PER_TASK;
  parallel_for(pool, tasks, [&](int64_t task) {
    const int64_t end = (task + 1) * RAYS_PER_TASK < rays ? (task + 1) * RAYS_PER_TASK : rays;
    for (int64_t r = task * RAYS_PER_TASK; r < end; ++r)
      count[r] = march_any(a, r, o, d, noise, jitters, a.samples, nullptr, nullptr, near, far);
  });
  int64_t total = 0, dropped = 0;
  for (int64_t r = 0; r < rays; ++r) {
    const int64_t room = capacity - total, fits = count[r] < room ? count[r] : room;
    offset[r] = static_cast<int32_t>(total);
    dropped += count[r] - fits;
    count[r] = static_cast<int32_t>(fits);
    total += fits;
  }
  *overflow = static_cast<int32_t>(dropped);
  parallel_for(pool, tasks, [&](int64_t task) {
    const int64_t end = (task + 1) * RAYS_PER_TASK < rays ? (task + 1) * RAYS_PER_TASK : rays;
    for (int64_t r = task * RAYS_PER_TASK; r < end; ++r) {
      if (!count[r]) continue;
      const int64_t at = offset[r];
      march_any(a, r, o, d, noise, jitters, count[r], t + at, dt + at, near, far);
      for (int i = 0; i < count[r]; ++i) ray[at + i] = static_cast<int32_t>(r);
    }
  });
  std::memset(t + total, 0, sizeof(float) * (capacity - total));
  std::memset(dt + total, 0, sizeof(float) * (capacity - total));
  std::memset(ray + total, 0, sizeof(int32_t) * (capacity - total));
}

}  // namespace tkjax::TKJAX_ISA
