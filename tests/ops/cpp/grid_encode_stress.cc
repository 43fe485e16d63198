// grid_encode from several threads: no data race, and the same bits as from one.
// kernels: grid_encode.cc
// link: grid_args_ffi.cc
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "grid_encode.h"
#include "std_pool.h"

using namespace tkjax;

struct Case {
  int dims, levels, features, planes, base, log2_entries;
  int64_t samples;
  bool hash, bfloat16;
};

// A grid whose levels double in resolution.
GridArgs grid(const Case& c) {
  std::vector<int32_t> words{c.dims, c.levels, c.features, 0};
  int64_t offset = 0;
  for (int l = 0; l < c.levels; ++l) {
    const int resolution = c.base << l;
    const float scale = resolution - 1.0f;
    const int64_t full = std::pow(resolution + 1, c.dims), most = int64_t{1} << c.log2_entries;
    const int64_t entries = full < most ? full : most;
    int32_t level[8] = {0, resolution, static_cast<int32_t>(entries), static_cast<int32_t>(offset)};
    std::memcpy(level, &scale, 4);
    int64_t stride = 1;
    for (int d = 0; d < c.dims; ++d, stride *= stride <= entries ? resolution + 1 : 1)
      level[5 + d] = stride <= entries ? static_cast<int32_t>(stride) : 0;
    level[4] = c.hash && full > entries;
    words.insert(words.end(), level, level + 8);
    offset += entries;
  }
  GridArgs args;
  if (const char* wrong = grid_parse(words.data(), words.size(), &args)) std::printf("%s\n", wrong), std::abort();
  return args;
}

struct Results {
  std::vector<uint32_t> out;
  std::vector<float> dtables, dpoints, alone;
};

Results run(const Case& c, const GridArgs& args, int threads) {
  std::mt19937 random(7);
  std::uniform_real_distribution<float> unit(-0.05f, 1.05f);
  const size_t rows = c.samples * c.planes, size = static_cast<size_t>(c.planes) * args.entries * args.features;
  std::vector<float> points(rows * c.dims), tables(size), dout(rows * args.channels());
  for (auto* v : {&points, &tables, &dout})
    for (float& x : *v) x = unit(random);
  if (c.bfloat16) {  // the upper half of each float
    char* bytes = reinterpret_cast<char*>(dout.data());
    for (size_t i = 0; i < dout.size(); ++i) std::memmove(bytes + 2 * i, bytes + 4 * i + 2, 2);
  }
  Results r{std::vector<uint32_t>(dout.size()), std::vector<float>(size, NAN), std::vector<float>(points.size(), NAN),
            std::vector<float>(size, NAN)};
  std::vector<float> scratch(grid_backward_scratch(args, c.samples, c.planes, true), NAN);
  StdPool pool(threads);
  TKJAX_CALL(grid_encode_forward, args, c.samples, c.planes, points.data(), tables.data(), r.out.data(), c.bfloat16,
             pool);
  TKJAX_CALL(grid_encode_backward, args, c.samples, c.planes, points.data(), tables.data(), dout.data(), c.bfloat16,
             r.dtables.data(), r.dpoints.data(), scratch.data(), pool);
  TKJAX_CALL(grid_encode_backward, args, c.samples, c.planes, points.data(), nullptr, dout.data(), c.bfloat16,
             r.alone.data(), nullptr, scratch.data(), pool);
  return r;
}

template <typename T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

int main() {
  const Case cases[] = {
      {3, 4, 2, 1, 8, 12, 5000, true, false},  // few levels: parts with tables of their own
      {2, 3, 1, 3, 16, 8, 3001, true, true},   // planes
      {2, 2, 8, 2, 4, 6, 700, false, false},   // wrapped sums
      {3, 1, 4, 1, 4, 5, 1, false, true},      // one sample
      {2, 1, 1, 1, 4, 5, 0, false, false},     // none
      {2, 16, 8, 4, 4, 10, 5000, true, false},  // more than one slab
  };
  int failed = 0;
  for (const Case& c : cases) {
    const GridArgs args = grid(c);
    const Results one = run(c, args, 1);
    for (int threads : {2, 3, 8}) {
      const Results many = run(c, args, threads);
      const bool equal = same(one.out, many.out) && same(one.dtables, many.dtables) &&
                         same(one.dpoints, many.dpoints) && same(one.dtables, many.alone);
      if (!equal) std::printf("case %d: %d threads differ from one\n", static_cast<int>(&c - cases), threads);
      failed += !equal;
    }
    for (float x : one.dtables) failed += std::isnan(x);
    for (float x : one.dpoints) failed += std::isnan(x);
  }
  if (failed) std::printf("%d failures\n", failed);
  return failed != 0;
}
