#include "render_fused.h"

#include <cstdlib>
#include <cstring>

#include "composite.h"
#include "simd.h"

namespace tkjax::TKJAX_ISA {
namespace {

constexpr int64_t BLOCK_FLOATS = 8192;  // marched samples of a block: t and dt stay in the cache
constexpr int64_t MAX_BLOCK = 512;      // rays

struct Ray {
  int32_t next, count;   // samples handed out, samples kept by the march
  float transmittance;
  bool done;
};

// What a block of rays needs, cut out of one allocation.
struct Scratch {
  float *t, *dt, *xyz, *out, *rows, *optical, *alpha, *keep;
  void* field;
  Ray* ray;
  int32_t* live;
  void* memory;

  static int64_t padded(int64_t floats) { return (floats + 15) / 16 * 16; }

  bool allocate(const RenderArgs& args, int64_t block) {
    const Field& field_ = *args.field;
    int64_t row_floats = 0;
    for (int i = 0; i < field_.rows; ++i)
      if (args.row[i]) row_floats += static_cast<int64_t>(field_.row_channels[i]) * TILE;
    int64_t sizes[] = {block * args.march.samples, block * args.march.samples, int64_t{field_.dims} * TILE,
                       int64_t{field_.channels} * TILE, row_floats, 3 * TILE,
                       static_cast<int64_t>(field_scratch_bytes(field_) / sizeof(float)),
                       static_cast<int64_t>(block * sizeof(Ray) / sizeof(float)) + 1, block};
    int64_t total = 0, at[9];
    for (int i = 0; i < 9; ++i) at[i] = total, total += padded(sizes[i]);
    if (posix_memalign(&memory, 64, sizeof(float) * static_cast<size_t>(total))) return false;
    float* base = static_cast<float*>(memory);
    t = base + at[0], dt = base + at[1], xyz = base + at[2], out = base + at[3], rows = base + at[4];
    optical = base + at[5], alpha = optical + TILE, keep = alpha + TILE, field = base + at[6], ray = reinterpret_cast<Ray*>(base + at[7]);
    live = reinterpret_cast<int32_t*>(base + at[8]);
    return true;
  }
};

// Up to 64 samples, in the order in which they are composited.
struct Tile {
  int size = 0;
  int32_t ray[TILE];  // within the block
  float t[TILE], dt[TILE];
};

class Block {
 public:
  Block(const RenderArgs& args, Scratch& scratch, int64_t first, int64_t rays)
      : args_(args), s_(scratch), first_(first), rays_(static_cast<int>(rays)) {
    float* at = s_.rows;
    for (int i = 0; i < args.field->rows; ++i) {
      row_[i].data = args.row[i] ? at : nullptr;
      if (args.row[i]) at += args.field->row_channels[i] * TILE;
    }
  }

  void render() {
    const int samples = args_.march.samples, channels = args_.field->channels - 1;
    std::memset(args_.weighted + first_ * channels, 0, sizeof(float) * static_cast<size_t>(rays_ * channels));
    int live = 0;
    for (int r = 0; r < rays_; ++r) {
      const int64_t at = (first_ + r) * 3;
      float near, far;
      int count = march_ray(args_.march, args_.o + at, args_.d + at, 0.0f, samples, s_.t + r * samples,
                            s_.dt + r * samples, &near, &far);
      s_.ray[r] = {0, count, 1.0f, false};
      args_.weight_sum[first_ + r] = 0.0f;
      args_.depth[first_ + r] = 0.0f;
      if (count) s_.live[live++] = r;
    }
    // Every pass hands out one sample of each ray that is neither finished nor opaque, front to back.
    while (live) {
      int kept = 0;
      for (int i = 0; i < live; ++i) {
        const int r = s_.live[i];
        Ray& ray = s_.ray[r];
        if (ray.done) continue;
        const int slot = r * samples + ray.next++;
        tile_.ray[tile_.size] = r, tile_.t[tile_.size] = s_.t[slot], tile_.dt[tile_.size] = s_.dt[slot];
        if (++tile_.size == TILE) flush();
        if (!ray.done && ray.next < ray.count) s_.live[kept++] = r;
      }
      live = kept;
    }
    if (tile_.size) flush();
  }

 private:
  // Field inputs of the tile; lanes without a sample repeat the first.
  void gather() {
    for (int i = 0; i < TILE; ++i) {
      const int from = i < tile_.size ? i : 0;
      const int64_t at = (first_ + tile_.ray[from]) * 3;
      for (int axis = 0; axis < 3; ++axis)
        s_.xyz[axis * TILE + i] = args_.o[at + axis] + tile_.t[from] * args_.d[at + axis];
    }
    for (int k = 0; k < args_.field->rows; ++k) {
      if (!args_.row[k]) continue;
      const int channels = args_.field->row_channels[k];
      float* out = const_cast<float*>(row_[k].data);
      for (int i = 0; i < TILE; ++i) {
        const float* row = args_.row[k] + (first_ + tile_.ray[i < tile_.size ? i : 0]) * channels;
        for (int c = 0; c < channels; ++c) out[c * TILE + i] = row[c];
      }
    }
  }

  void flush() {
    gather();
    field_tile(*args_.field, s_.xyz, row_, s_.out, s_.field);
    for (int i = 0; i < tile_.size; ++i) s_.optical[i] = s_.out[i] * tile_.dt[i];
    composite_alpha(s_.optical, tile_.size, s_.alpha, s_.keep);
    const int channels = args_.field->channels - 1;
    for (int i = 0; i < tile_.size; ++i) {
      Ray& ray = s_.ray[tile_.ray[i]];
      if (ray.done) continue;
      const int64_t at = first_ + tile_.ray[i];
      float weight;
      ray.done = !composite_step(s_.alpha[i], s_.keep[i], args_.stop, &ray.transmittance, &weight);
      for (int c = 0; c < channels; ++c) args_.weighted[at * channels + c] += weight * s_.out[(c + 1) * TILE + i];
      args_.weight_sum[at] += weight;
      args_.depth[at] += weight * tile_.t[i];
    }
    tile_.size = 0;
  }

  const RenderArgs& args_;
  Scratch& s_;
  const int64_t first_;
  const int rays_;
  RowTile row_[FIELD_MAX_ROWS];
  Tile tile_;
};

}  // namespace

bool render_fused(const RenderArgs& args, Pool& pool) {
  int64_t block = BLOCK_FLOATS / args.march.samples;
  block = block < 16 ? 16 : block > MAX_BLOCK ? MAX_BLOCK : block;
  bool failed = false;
  parallel_for(pool, (args.rays + block - 1) / block, [&](int64_t task) {
    const int64_t first = task * block, left = args.rays - first;
    Scratch scratch;
    if (!scratch.allocate(args, block)) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    Block(args, scratch, first, left < block ? left : block).render();
    std::free(scratch.memory);
  });
  return !failed;
}

}  // namespace tkjax::TKJAX_ISA
