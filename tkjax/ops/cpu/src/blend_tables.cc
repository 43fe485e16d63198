#include "blend_tables.h"

#include "simd.h"

namespace tkjax::TKJAX_ISA {
namespace {

constexpr int GROUP = 8;  // arrays that are added in one pass over the sum

TKJAX_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// body(first, floats) for the chunks of a task.
template <typename Body>
TKJAX_INLINE void for_chunks(int64_t task, int64_t size, const Body& body) {
  const int64_t end = least(size, (task + 1) * BLEND_TASK * BLEND_CHUNK);
  for (int64_t at = task * BLEND_TASK * BLEND_CHUNK; at < end; at += BLEND_CHUNK) body(at, least(BLEND_CHUNK, end - at));
}

// sum += weight[j] * arrays[array[j]] for j below `count`, a constant: the loop over it is unrolled.
template <int count>
void add(const float* weight, const int32_t* array, const float* arrays, int64_t size, int64_t floats, float* sum) {
  const float* from[count];
  F w[count];
  for (int j = 0; j < count; ++j) from[j] = arrays + array[j] * size, w[j] = set1(weight[j]);
  int64_t i = 0;
  for (; i + W <= floats; i += W) {
    F v = load(sum + i);
    for (int j = 0; j < count; ++j) v = fma(w[j], load(from[j] + i), v);
    store(sum + i, v);
  }
  for (; i < floats; ++i)
    for (int j = 0; j < count; ++j) {  // as the lanes of a vector do it
      F v = fma(w[j], set1(from[j][i]), set1(sum[i]));
      sum[i] = v[0];
    }
}

// <a, b_j> of a chunk for `count` arrays b, a constant.
template <int count>
void products(const float* a, const float* b, int64_t stride, int64_t floats, double* out) {
  F sum[count] = {};
  int64_t i = 0;
  for (; i + W <= floats; i += W) {
    const F v = load(a + i);
    for (int j = 0; j < count; ++j) sum[j] = fma(v, load(b + j * stride + i), sum[j]);
  }
  for (int j = 0; j < count; ++j) {
    double total = 0;
    for (int k = 0; k < W; ++k) total += sum[j][k];
    for (int64_t k = i; k < floats; ++k) total += a[k] * b[j * stride + k];
    out[j] += total;
  }
}

}  // namespace

void blend_sums(const BlendWeights& w, int64_t sums, const float* arrays, int64_t size, float* out, Pool& pool) {
  parallel_for(pool, blend_tasks(size), [&](int64_t task) {
    for_chunks(task, size, [&](int64_t at, int64_t floats) {
      float sum[BLEND_CHUNK];
      for (int64_t m = 0; m < sums; ++m) {
        std::memset(sum, 0, sizeof sum);
        int64_t j = w.start[m];
        for (; j + GROUP <= w.start[m + 1]; j += GROUP)
          add<GROUP>(w.weight + j, w.array + j, arrays + at, size, floats, sum);
        for (; j < w.start[m + 1]; ++j) add<1>(w.weight + j, w.array + j, arrays + at, size, floats, sum);
        std::memcpy(out + m * size + at, sum, sizeof(float) * floats);
      }
    });
  });
}

void blend_products(const float* left, int64_t lefts, const float* right, int64_t rights, int64_t size,
                    double* scratch, float* out, Pool& pool) {
  const int64_t pairs = lefts * rights, tasks = blend_tasks(size);
  parallel_for(pool, tasks, [&](int64_t task) {
    double* own = scratch + task * pairs;
    std::memset(own, 0, sizeof(double) * pairs);
    for_chunks(task, size, [&](int64_t at, int64_t floats) {
      for (int64_t a = 0; a < lefts; ++a) {
        int64_t b = 0;
        for (; b + GROUP <= rights; b += GROUP)
          products<GROUP>(left + a * size + at, right + b * size + at, size, floats, own + a * rights + b);
        for (; b < rights; ++b)
          products<1>(left + a * size + at, right + b * size + at, size, floats, own + a * rights + b);
      }
    });
  });
  for (int64_t p = 0; p < pairs; ++p) {
    double total = 0;
    for (int64_t task = 0; task < tasks; ++task) total += scratch[task * pairs + p];
    out[p] = static_cast<float>(total);
  }
}

}  // namespace tkjax::TKJAX_ISA
