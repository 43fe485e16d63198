// Many threads composite at once, forward and backward; every result must be that of one thread, to the byte.
// kernels: composite.cc
#include <cstdio>
#include <cstring>
#include <vector>

#include "composite.h"
#include "numbers.h"
#include "std_pool.h"

using namespace tkjax::TKJAX_ISA;

namespace {

std::vector<float> numbers(Numbers& random, size_t n, float scale = 1) {
  std::vector<float> out(n);
  for (float& v : out) v = scale * random.unit();
  return out;
}

bool check(bool packed, int rays) {
  constexpr int slots_of_ray = 21, channels = 4, plains = 2;
  Numbers random(rays + packed);
  std::vector<int32_t> offset(rays), count(rays);
  int32_t end = 3;
  for (int r = 0; r < rays; ++r) {
    offset[r] = end;
    count[r] = static_cast<int32_t>(random.next() % slots_of_ray);
    end += count[r] + static_cast<int32_t>(random.next() % 3);
  }
  const size_t slots = packed ? end + 5 : static_cast<size_t>(rays) * slots_of_ray;
  std::vector<float> sigma = numbers(random, slots, 30), t = numbers(random, slots), dt = numbers(random, slots, 0.2f);
  std::vector<float> weighted = numbers(random, slots * channels), plain = numbers(random, slots * plains);
  std::vector<float> g = numbers(random, static_cast<size_t>(rays) * (channels + plains + 2));
  std::vector<uint8_t> valid(slots);
  for (uint8_t& v : valid) v = random.unit() < 0.7f;

  tkjax::CompositeIn in{};
  in.packed = packed;
  in.rays = rays, in.slots = packed ? static_cast<int64_t>(slots) : slots_of_ray;
  in.offset = offset.data(), in.count = count.data();
  in.sigma = sigma.data(), in.t = t.data(), in.dt = dt.data(), in.dt_each = 1;
  in.valid = valid.data();
  in.weighted = weighted.data(), in.plain = plain.data(), in.channels = channels, in.plains = plains, in.stop = 1e-4f;

  std::vector<float> first;
  for (int threads : {1, 2, 4, 7}) {
    tkjax::StdPool pool(threads);
    const size_t sums = static_cast<size_t>(rays) * (channels + plains + 2);
    std::vector<float> out(sums + slots * (channels + plains + 2), -7);  // every number must be written
    float* p = out.data();
    auto take = [&](size_t n) { return (p += n) - n; };
    tkjax::CompositeOut forward{};
    forward.weighted = take(rays * channels), forward.plain = take(rays * plains);
    forward.weight_sum = take(rays), forward.depth = take(rays);
    tkjax::CompositeGrad backward{};
    backward.weighted = g.data(), backward.plain = backward.weighted + rays * channels;
    backward.weight_sum = backward.plain + rays * plains, backward.depth = backward.weight_sum + rays;
    backward.d_sigma = take(slots), backward.d_t = take(slots);
    backward.d_weighted = take(slots * channels), backward.d_plain = take(slots * plains);
    composite_forward(in, forward, pool);
    composite_backward(in, backward, pool);
    for (float v : out)
      if (v == -7) return std::puts("not everything was written"), false;
    if (threads == 1) first = out;
    if (std::memcmp(first.data(), out.data(), sizeof(float) * out.size())) {
      std::printf("%d threads differ from one (%d rays)\n", threads, rays);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  for (int rays : {0, 1, 257, 4000})
    for (bool packed : {false, true})
      if (!check(packed, rays)) return 1;
  std::puts("composite: same bytes with 1, 2, 4 and 7 threads");
  return 0;
}
