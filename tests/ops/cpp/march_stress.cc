// Many threads march, count and pack at once; every result must be that of one thread, to the byte.
// kernels: march.cc packbits.cc
#include <cstdio>
#include <vector>

#include "march.h"
#include "numbers.h"
#include "packbits.h"
#include "std_pool.h"

using namespace tkjax::TKJAX_ISA;

namespace {

struct Marched {
  std::vector<float> t, dt, near, far;
  std::vector<int32_t> ray, offset, count, overflow;

  Marched(size_t rays, size_t slots)
      : t(slots), dt(slots), near(rays), far(rays), ray(slots), offset(rays), count(rays), overflow(1) {}

  bool operator==(const Marched& o) const {
    return t == o.t && dt == o.dt && near == o.near && far == o.far && ray == o.ray && offset == o.offset &&
           count == o.count && overflow == o.overflow;
  }
};

bool check(bool cone, int jitters, int rays) {
  constexpr int side = 32, samples = 24;
  Numbers random(rays + cone);
  std::vector<float> density(side * side * side), wide(density.size());
  for (float& v : density) v = random.unit() < 0.1f;
  std::vector<float> o(3 * rays), d(3 * rays), noise(rays * (jitters ? jitters : 1));
  for (float& v : noise) v = random.unit();
  for (int r = 0; r < rays; ++r) {
    for (int i = 0; i < 3; ++i) {
      o[3 * r + i] = 4 * random.unit() - 2;
      d[3 * r + i] = random.unit() - 0.5f - o[3 * r + i];  // towards the middle
    }
  }
  std::vector<uint8_t> first_bits;
  std::vector<Marched> first;
  for (int threads : {1, 2, 4, 7}) {
    tkjax::StdPool pool(threads);
    std::vector<uint8_t> bits(density.size() / 8);
    dilate_morton(density.data(), side, wide.data(), pool);
    packbits(wide.data(), static_cast<int64_t>(wide.size()), 0.5f, bits.data(), pool);
    tkjax::MarchArgs args{};
    args.bits = bits.data(), args.bytes = static_cast<int64_t>(bits.size());
    args.side = side, args.cascades = 1, args.samples = samples;
    for (int i = 0; i < 3; ++i) args.box[i] = -1, args.box[i + 3] = 1;
    args.dt = 0.01f, args.t_min = 0.05f, args.bound = 1, args.dt_gamma = cone ? 0.02f : 0, args.dt_max = 0.05f;
    march_prepare(&args);
    const size_t capacity = static_cast<size_t>(rays) * samples / 4;
    Marched dense(rays, static_cast<size_t>(rays) * samples), packed(rays, capacity);
    march_dense(args, rays, o.data(), d.data(), noise.data(), jitters, dense.t.data(), dense.dt.data(),
                dense.count.data(), dense.near.data(), dense.far.data(), pool);
    march_packed(args, rays, static_cast<int64_t>(capacity), o.data(), d.data(), noise.data(), jitters,
                 packed.t.data(), packed.dt.data(), packed.ray.data(), packed.offset.data(), packed.count.data(),
                 packed.near.data(), packed.far.data(), packed.overflow.data(), pool);
    if (threads == 1) {
      first_bits = bits, first = {dense, packed};
      int64_t kept = 0;
      for (int n : dense.count) kept += n;
      if (rays > 100 && (kept < rays || packed.overflow[0] <= 0)) return std::puts("this tests nothing"), false;
    } else if (bits != first_bits || !(dense == first[0]) || !(packed == first[1])) {
      std::printf("%d threads differ from one (%d rays)\n", threads, rays);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  for (int rays : {0, 1, 129, 3000})
    for (bool cone : {false, true})
      for (int jitters : {0, 5})
        if (!check(cone, jitters, rays)) return 1;
  std::puts("march: same bytes with 1, 2, 4 and 7 threads");
  return 0;
}
