#include "composite.h"

#include "simd.h"

namespace tkjax::TKJAX_ISA {
namespace {

constexpr int BLOCK = COMPOSITE_BLOCK;
static_assert(BLOCK % W == 0);
constexpr int64_t RAYS_PER_TASK = 256;

// exp(x) - 1 = 2^n (e^r - 1) + (2^n - 1) for x = n ln 2 + r: exact to rounding near 0 as well, where alpha is small.
TKJAX_INLINE void decay(F optical, F* alpha, F* keep) {
  F x = min(max(-optical, set1(-87.0f)), set1(87.0f));
  F n, r, q = exp_split(x, &n, &r);
  F p = fma(q, r * r, r);
  F scale = from_bits((to_int(n) + 127) << 23);
  F a = -fma(scale, p, scale - 1.0f), k = fma(scale, p, scale);
  k = optical > 87.0f ? F{} : k;
  *alpha = optical != optical ? optical : a;
  *keep = optical != optical ? optical : k;
}

// The samples of one ray.
struct Ray {
  const CompositeIn& in;
  int64_t base, samples;

  Ray(const CompositeIn& i, int64_t r) : in(i) {
    base = in.packed ? in.offset[r] : r * in.slots;
    samples = in.packed ? in.count[r] : in.slots;
  }

  bool valid(int64_t i) const { return in.packed || in.valid[base + i]; }
  float dt(int64_t i) const { return in.dt_each ? in.dt[base + i] : *in.dt; }

  // alpha and keep of the block that starts at sample i; false where it holds no valid sample.
  bool block(int64_t i, int n, float* alpha, float* keep) const {
    float optical[BLOCK] = {};
    int some = 0;
    for (int j = 0; j < n; ++j) {
      const float step = dt(i + j);
      const bool is_valid = valid(i + j);
      some |= is_valid;
      optical[j] = is_valid && step > 0 ? in.sigma[base + i + j] * step : 0;
    }
    if (some) composite_alpha(optical, n, alpha, keep);
    return some;
  }

  // body(sample, weight, transmittance behind it) for all samples that count, front to back.
  template <typename Body>
  inline __attribute__((always_inline)) void walk(const Body& body) const {
    float transmittance = 1, weight, alpha[BLOCK], keep[BLOCK];
    for (int64_t i = 0; i < samples; i += BLOCK) {
      const int n = samples - i < BLOCK ? static_cast<int>(samples - i) : BLOCK;
      if (!block(i, n, alpha, keep)) continue;
      for (int j = 0; j < n; ++j) {
        if (!valid(i + j)) continue;
        const bool goes_on = composite_step(alpha[j], keep[j], in.stop, &transmittance, &weight);
        body(i + j, weight, transmittance);
        if (!goes_on) return;
      }
    }
  }
};

inline void forward_ray(const CompositeIn& in, const CompositeOut& out, int64_t r) {
  const Ray ray(in, r);
  const int channels = in.channels, plains = in.plains;
  float *sums = out.weighted + r * channels, *plain_sums = out.plain + r * plains;
  std::memset(sums, 0, sizeof(float) * channels);
  std::memset(plain_sums, 0, sizeof(float) * plains);
  float weight_sum = 0, depth = 0;
  ray.walk([&](int64_t i, float w, float) {
    const float *c = in.weighted + (ray.base + i) * channels, *q = in.plain + (ray.base + i) * plains;
    for (int k = 0; k < channels; ++k) sums[k] += w * c[k];
    for (int k = 0; k < plains; ++k) plain_sums[k] += q[k];
    weight_sum += w;
    depth += w * in.t[ray.base + i];
  });
  out.weight_sum[r] = weight_sum;
  out.depth[r] = depth;
}

// All of a ray's slots [begin, end), which no other ray owns, are set to zero; then those that count are written.
// d_t and d_sigma first hold weight and transmittance, for the way back.
inline void backward_ray(const CompositeIn& in, const CompositeGrad& g, int64_t r, int64_t begin, int64_t end) {
  const Ray ray(in, r);
  const int channels = in.channels, plains = in.plains;
  std::memset(g.d_sigma + begin, 0, sizeof(float) * (end - begin));
  std::memset(g.d_t + begin, 0, sizeof(float) * (end - begin));
  std::memset(g.d_weighted + begin * channels, 0, sizeof(float) * channels * (end - begin));
  std::memset(g.d_plain + begin * plains, 0, sizeof(float) * plains * (end - begin));
  int64_t last = -1;
  ray.walk([&](int64_t i, float w, float behind) {
    g.d_t[ray.base + i] = w;
    g.d_sigma[ray.base + i] = behind;
    last = i;
  });
  const float *gw = g.weighted + r * channels, *gq = g.plain + r * plains;
  const float gs = g.weight_sum[r], gd = g.depth[r];
  float later = 0;  // sum over the samples behind of weight times what a unit of weight is worth
  for (int64_t i = last; i >= 0; --i) {
    if (!ray.valid(i)) continue;
    const int64_t at = ray.base + i;
    const float w = g.d_t[at], behind = g.d_sigma[at], step = ray.dt(i);
    const float* c = in.weighted + at * channels;
    float worth = gs;
    for (int k = 0; k < channels; ++k) {
      worth += gw[k] * c[k];
      g.d_weighted[at * channels + k] = w * gw[k];
    }
    for (int k = 0; k < plains; ++k) g.d_plain[at * plains + k] = gq[k];
    g.d_sigma[at] = step > 0 ? step * (behind * worth - later) : 0;
    g.d_t[at] = w * gd;
    later += w * worth;
  }
}

}  // namespace

void composite_alpha(const float* optical, int n, float* alpha, float* keep) {
  for (int i = 0; i < n; i += W) {
    F a, k;
    decay(load(optical + i), &a, &k);
    store(alpha + i, a);
    store(keep + i, k);
  }
}

void composite_forward(const CompositeIn& in, const CompositeOut& out, Pool& pool) {
  parallel_for(pool, (in.rays + RAYS_PER_TASK - 1) / RAYS_PER_TASK, [&](int64_t task) {
    const int64_t end = (task + 1) * RAYS_PER_TASK < in.rays ? (task + 1) * RAYS_PER_TASK : in.rays;
    for (int64_t r = task * RAYS_PER_TASK; r < end; ++r) forward_ray(in, out, r);
  });
}

void composite_backward(const CompositeIn& in, const CompositeGrad& grad, Pool& pool) {
  if (in.packed && in.rays == 0) {
    std::memset(grad.d_sigma, 0, sizeof(float) * in.slots);
    std::memset(grad.d_t, 0, sizeof(float) * in.slots);
    std::memset(grad.d_weighted, 0, sizeof(float) * in.channels * in.slots);
    std::memset(grad.d_plain, 0, sizeof(float) * in.plains * in.slots);
  }
  parallel_for(pool, (in.rays + RAYS_PER_TASK - 1) / RAYS_PER_TASK, [&](int64_t task) {
    const int64_t stop = (task + 1) * RAYS_PER_TASK < in.rays ? (task + 1) * RAYS_PER_TASK : in.rays;
    for (int64_t r = task * RAYS_PER_TASK; r < stop; ++r) {
      int64_t begin = r * in.slots, end = begin + in.slots;
      if (in.packed) {  // the gap up to the next ray belongs to this one
        begin = r ? in.offset[r] : 0;
        end = r + 1 < in.rays ? in.offset[r + 1] : in.slots;
      }
      backward_ray(in, grad, r, begin, end);
    }
  });
}

}  // namespace tkjax::TKJAX_ISA
