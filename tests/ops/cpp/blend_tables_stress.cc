// Many threads blend at once, and take inner products; every result must be that of one thread, to the byte.
// kernels: blend_tables.cc
#include <cstdio>
#include <cstring>
#include <vector>

#include "blend_tables.h"
#include "numbers.h"
#include "std_pool.h"

using namespace tkjax::TKJAX_ISA;

namespace {

bool check(int64_t sums, int64_t arrays, int64_t size) {
  Numbers random(sums + arrays + size);
  std::vector<float> from(arrays * size), left(sums * size), weight;
  std::vector<int64_t> start{0};
  std::vector<int32_t> array;
  for (float& v : from) v = random.unit();
  for (float& v : left) v = random.unit();
  for (int64_t m = 0; m < sums; ++m) {
    for (int64_t j = 0; j < arrays; ++j)
      if (random.unit() < 0.6f) array.push_back(static_cast<int32_t>(j)), weight.push_back(random.unit());
    start.push_back(static_cast<int64_t>(array.size()));
  }
  const tkjax::BlendWeights weights{start.data(), array.data(), weight.data()};
  std::vector<float> first;
  for (int threads : {1, 2, 4, 7}) {
    tkjax::StdPool pool(threads);
    std::vector<float> out(sums * size + sums * arrays, -7);  // every number must be written
    std::vector<double> scratch(tkjax::blend_tasks(size) * sums * arrays, -7);
    blend_sums(weights, sums, from.data(), size, out.data(), pool);
    blend_products(left.data(), sums, from.data(), arrays, size, scratch.data(), out.data() + sums * size, pool);
    if (threads == 1) first = out;
    if (std::memcmp(first.data(), out.data(), sizeof(float) * out.size())) {
      std::printf("%d threads: other numbers for %ld sums of %ld arrays of %ld\n", threads, static_cast<long>(sums),
                  static_cast<long>(arrays), static_cast<long>(size));
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  bool good = true;
  for (int64_t size : {0, 1, 1023, 8192, 30001})
    for (int64_t sums : {1, 3}) good = check(sums, 17, size) && good;
  return !good;
}
