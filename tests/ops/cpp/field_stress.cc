// A field from several threads, forward and backward: no data race, and the same bits as from one.
// kernels: field.cc grid_encode.cc
// link: grid_args_ffi.cc
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "field.h"
#include "std_pool.h"

using namespace tkjax;

int32_t bits(float x) {
  int32_t i;
  std::memcpy(&i, &x, 4);
  return i;
}

// Two levels: one of 81 entries, one hashed of 64; two features.
std::vector<int32_t> grid_words() {
  return {2, 2, 2, 0, bits(7.0f), 8, 88, 0, 0, 1, 9, 0, bits(15.0f), 16, 64, 88, 1, 1, 17, 0};
}

// A grid of two planes, MLPs with rows per ray and for all, a second grid on what an MLP gives.
std::vector<int32_t> words() {
  std::vector<int32_t> w{3, 9, 2, 8, 3, 5, 4, 4, 7, 8};  // dims, steps, rows, parameters, outputs; widths; outputs
  const std::vector<int32_t> grid = grid_words();
  auto add = [&](std::initializer_list<int32_t> more) { w.insert(w.end(), more); };
  auto add_grid = [&] {
    w.push_back(static_cast<int32_t>(grid.size()));
    w.insert(w.end(), grid.begin(), grid.end());
  };
  add({F_POINTS, 3, 0});
  add({F_ROW, 5, 0, 0});
  add({F_ROW, 4, 0, 1});
  add({F_GRID, 8, 1, 0, /*tables*/ 0, /*planes*/ 2, 2, 0, 1, 1, 2, bits(1.0f)});
  add_grid();
  add({F_MLP, 9, 3, 3, 1, 2, /*kernels*/ 1, 2, 17, 17, 9, /*biases*/ 1, RELU, NONE});
  add({F_SLICE, 4, 1, 4, 2});
  add({F_MUL, 4, 2, 5, 2});
  add({F_MLP, 2, 1, 6, 5, 2, 4, 6, 2, 0, TANH, SIGMOID});
  add({F_GRID, 4, 1, 7, 7, 1, 2, 0, 1, bits(1.5f)});
  add_grid();
  return w;
}

using Floats = std::vector<float>;

Floats random_floats(std::mt19937& random, size_t count, float scale) {
  std::uniform_real_distribution<float> uniform(-scale, scale);
  Floats out(count);
  for (float& x : out) x = uniform(random);
  return out;
}

struct Aligned {
  explicit Aligned(size_t bytes) : data(std::aligned_alloc(64, (bytes + 127) / 64 * 64)) {}
  ~Aligned() { std::free(data); }
  void* data;
};

// Everything that forward and backward give, end to end.
Floats run(int64_t samples, int64_t total, int threads) {
  std::mt19937 random(7);
  const std::vector<int32_t> program = words();
  const bool indexed[2] = {true, false};
  auto field = std::make_unique<Field>();
  if (const char* why = TKJAX_CALL(field_parse, program.data(), program.size(), indexed, true, field.get())) {
    std::printf("%s\n", why);
    std::abort();
  }
  std::vector<Floats> params;
  for (int i = 0; i < field->params; ++i) params.push_back(random_floats(random, field->param_size[i], 0.7f));
  const Floats ray = random_floats(random, 11 * 5, 1), all = random_floats(random, 4, 1);
  const Floats points = random_floats(random, samples * 3, 1.1f);
  const Floats dout = random_floats(random, samples * field->channels, 1);
  std::vector<int32_t> index(samples);
  for (int32_t& k : index) k = static_cast<int32_t>(random() % 13) - 1;
  const FieldRow rows[2] = {{ray.data(), 11, index.data()}, {all.data(), 1, nullptr}};
  const float* values[2] = {ray.data(), all.data()};
  std::vector<const float*> pointers;
  for (const Floats& p : params) pointers.push_back(p.data());
  Aligned memory(field_memory_bytes(*field));
  TKJAX_CALL(field_bind, *field, pointers.data(), values, memory.data);
  Floats out(samples * field->channels, NAN), dray(ray.size(), NAN), dall(4, NAN), dpoints(points.size(), NAN);
  std::vector<Floats> dparams;
  FieldGradients ask = {};
  for (int i = 0; i < field->params; ++i) dparams.emplace_back(params[i].size(), NAN);
  for (int i = 0; i < field->params; ++i) ask.param[i] = dparams[i].data();
  ask.row[0] = dray.data(), ask.row[1] = dall.data(), ask.points = dpoints.data();
  StdPool pool(threads);
  bool ok = TKJAX_CALL(field_forward, *field, samples, total, points.data(), rows, out.data(), pool);
  ok = ok && TKJAX_CALL(field_backward, *field, samples, total, points.data(), rows, dout.data(), ask, pool);
  if (!ok) std::abort();
  for (const Floats* v : {&dray, &dall, &dpoints}) out.insert(out.end(), v->begin(), v->end());
  for (const Floats& v : dparams) out.insert(out.end(), v.begin(), v.end());
  return out;
}

int main() {
  const int64_t cases[][2] = {{0, 0}, {1, 1}, {65, 64}, {5000, 4711}, {40000, 39999}};
  for (auto [samples, total] : cases) {
    const Floats one = run(samples, total, 1);
    for (float x : one)
      if (!std::isfinite(x)) return std::printf("not finite at %d samples\n", static_cast<int>(samples)), 1;
    for (int threads : {2, 5}) {
      const Floats many = run(samples, total, threads);
      if (std::memcmp(one.data(), many.data(), sizeof(float) * one.size()))
        return std::printf("%d threads differ at %d samples\n", threads, static_cast<int>(samples)), 1;
    }
  }
  return 0;
}
