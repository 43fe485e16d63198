// Many threads draw one picture; every number must be that of one thread, to the byte.
// kernels: render_fused.cc field.cc march.cc composite.cc grid_encode.cc
// link: grid_args_ffi.cc
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "render_fused.h"
#include "std_pool.h"

using namespace tkjax;
using Floats = std::vector<float>;

// sigma = exp of the first output of an MLP of position and a row per ray, colour = the sigmoid of the others.
std::vector<int32_t> words() {
  std::vector<int32_t> w{3, 7, 1, 2, 2, 5, 4, 6};  // dims, steps, rows, parameters, outputs; widths; outputs
  auto add = [&](std::initializer_list<int32_t> more) { w.insert(w.end(), more); };
  add({F_POINTS, 3, 0});
  add({F_ROW, 5, 0, 0});
  add({F_MLP, 4, 2, 0, 1, /*kernels*/ 0, 2, 8, 17, 4, /*biases*/ 0, RELU, NONE});
  add({F_SLICE, 1, 1, 2, 0});
  add({F_ACT, 1, 1, 3, EXP});
  add({F_SLICE, 3, 1, 2, 1});
  add({F_ACT, 3, 1, 5, SIGMOID});
  return w;
}

struct Aligned {
  explicit Aligned(size_t bytes) : data(std::aligned_alloc(64, (bytes + 127) / 64 * 64)) {}
  ~Aligned() { std::free(data); }
  void* data;
};

Floats random_floats(std::mt19937& random, size_t count, float scale) {
  std::uniform_real_distribution<float> uniform(-scale, scale);
  Floats out(count);
  for (float& x : out) x = uniform(random);
  return out;
}

Floats run(int rays, int threads) {
  constexpr int side = 16;
  std::mt19937 random(5);
  Floats o = random_floats(random, 3 * rays, 2), d = random_floats(random, 3 * rays, 0.4f);
  for (int i = 0; i < 3 * rays; ++i) d[i] -= o[i];  // towards the middle
  std::vector<uint8_t> bits(side * side * side / 8);
  for (uint8_t& b : bits) b = static_cast<uint8_t>(random() & random());

  const std::vector<int32_t> program = words();
  const bool per_ray[1] = {true};
  auto field = std::make_unique<Field>();
  if (const char* why = TKJAX_CALL(field_parse, program.data(), program.size(), per_ray, false, field.get())) {
    std::printf("%s\n", why);
    std::abort();
  }
  const Floats row = random_floats(random, 5 * rays, 1);
  const Floats kernels[2] = {random_floats(random, 8 * 17, 1), random_floats(random, 17 * 4, 1)};
  const float* params[2] = {kernels[0].data(), kernels[1].data()};
  const float* values[1] = {row.data()};
  Aligned memory(field_memory_bytes(*field));
  TKJAX_CALL(field_bind, *field, params, values, memory.data);

  Floats out(static_cast<size_t>(rays) * 5, NAN);  // every number must be written
  RenderArgs args{};
  args.field = field.get();
  args.march.bits = bits.data(), args.march.bytes = static_cast<int64_t>(bits.size());
  args.march.side = side, args.march.cascades = 1, args.march.samples = 40;
  for (int i = 0; i < 3; ++i) args.march.box[i] = -1, args.march.box[i + 3] = 1;
  args.march.dt = 0.03f, args.march.t_min = 0.05f, args.march.bound = 1, args.march.dt_max = 0.03f;
  TKJAX_CALL(march_prepare, &args.march);
  args.rays = rays, args.o = o.data(), args.d = d.data(), args.row[0] = row.data(), args.stop = 1e-3f;
  args.weighted = out.data(), args.weight_sum = out.data() + 3 * rays, args.depth = args.weight_sum + rays;
  StdPool pool(threads);
  if (!TKJAX_CALL(render_fused, args, pool)) std::abort();
  return out;
}

int main() {
  for (int rays : {0, 1, 300, 9000}) {
    const Floats one = run(rays, 1);
    double drawn = 0;
    for (float x : one) {
      if (!std::isfinite(x)) return std::printf("not finite with %d rays\n", rays), 1;
      drawn += x;
    }
    if (rays > 1 && !(drawn > rays * 0.1)) return std::printf("nothing was drawn with %d rays\n", rays), 1;
    for (int threads : {2, 3, 8}) {
      const Floats many = run(rays, threads);
      if (std::memcmp(one.data(), many.data(), sizeof(float) * one.size()))
        return std::printf("%d threads differ with %d rays\n", threads, rays), 1;
    }
  }
  return 0;
}
