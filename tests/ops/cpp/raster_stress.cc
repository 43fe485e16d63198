// Many threads draw a mesh at once, mix its values, find its silhouettes and pull gradients back; every result must be
// that of one thread, to the byte.
// kernels: rasterize.cc interpolate.cc antialias.cc
#include <cstdio>
#include <cstring>
#include <vector>

#include "antialias.h"
#include "interpolate.h"
#include "numbers.h"
#include "rasterize.h"
#include "std_pool.h"

using namespace tkjax;
using namespace tkjax::TKJAX_ISA;

namespace {

bool check(int32_t height, int32_t width, int64_t vertices, int64_t count) {
  constexpr int64_t CHANNELS = 5;
  Numbers random(height + width + vertices + count);
  const int64_t pixels = int64_t{height} * width;
  std::vector<float> clip(4 * vertices), values(CHANNELS * vertices), g(CHANNELS * pixels);
  std::vector<int32_t> faces(3 * count), opposite(3 * count, -1);
  for (int64_t i = 0; i < 4 * vertices; ++i) clip[i] = i % 4 == 3 ? 1.0f : 2 * random.unit() - 1;
  for (float& v : values) v = random.unit();
  for (float& v : g) v = random.unit() - 0.5f;
  for (int64_t f = 0; f < count; ++f) {  // small ones: vertices that follow each other lie near each other
    const int64_t first = static_cast<int64_t>(random.next() % vertices);
    for (int k = 0; k < 3; ++k) faces[3 * f + k] = static_cast<int32_t>((first + k) % vertices);
    for (int k = 1; k < 3; ++k)
      for (int c = 0; c < 2; ++c)
        clip[4 * faces[3 * f + k] + c] = clip[4 * faces[3 * f] + c] + 0.3f * (random.unit() - 0.5f);
  }
  const Mesh mesh{clip.data(), vertices, faces.data(), count, height, width};
  const int64_t tasks = (count + RASTER_FACES - 1) / RASTER_FACES, bands = (height + RASTER_BAND - 1) / RASTER_BAND;
  std::vector<float> first;
  for (int threads : {1, 2, 4, 7}) {
    StdPool pool(threads);
    std::vector<float> at(2 * vertices), centres(width + RASTER_PAD + height);
    std::vector<uint8_t> kind(vertices), bits(count);
    std::vector<uint32_t> rows(count), columns(count);
    std::vector<int32_t> number(count), kept(tasks), face(pixels, -7);
    std::vector<float> uv(2 * pixels, -7), zw(pixels, -7), right(pixels, -7), below(pixels, -7);
    raster_draw(mesh, {at.data(), kind.data(), centres.data(), rows.data(), columns.data(), number.data(), kept.data()},
                face.data(), uv.data(), zw.data(), pool);
    std::vector<float> to_clip(8 * vertices, -7), mixed(CHANNELS * pixels, -7), to_values(CHANNELS * vertices, -7);
    std::vector<float> to_uv(2 * pixels, -7);
    const int64_t shares = raster_shares(pixels, 4 * vertices);
    std::vector<float> sums(16 * CHANNELS * vertices, -7);
    raster_pull(mesh, face.data(), g.data(), shares, sums.data(), to_clip.data(), pool);
    mix_draw(mesh, values.data(), CHANNELS, face.data(), uv.data(), mixed.data(), pool);
    mix_pull(mesh, values.data(), CHANNELS, face.data(), uv.data(), g.data(), shares, sums.data(), to_values.data(),
             to_uv.data(), pool);
    const Picture picture{face.data(), zw.data(), opposite.data()};
    const SilhouetteScratch room{at.data(), bits.data()};
    std::vector<Pull> pulls(4 * bands * RASTER_BAND * width);
    std::vector<int64_t> counts(bands);
    silhouette_draw(mesh, picture, room, right.data(), below.data(), pool);
    silhouette_pull(mesh, picture, room, g.data(), g.data() + pixels, pulls.data(), counts.data(),
                    to_clip.data() + 4 * vertices, pool);
    std::vector<float> all(pixels);
    std::memcpy(all.data(), face.data(), sizeof(float) * pixels);
    for (const auto* part : {&uv, &zw, &right, &below, &to_clip, &mixed, &to_values, &to_uv})
      all.insert(all.end(), part->begin(), part->end());
    if (threads == 1) first = all;
    if (std::memcmp(first.data(), all.data(), sizeof(float) * all.size())) {
      std::printf("%d threads: other numbers for %d x %d of %ld faces\n", threads, height, width,
                  static_cast<long>(count));
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  bool good = check(1, 1, 3, 1);
  good = check(70, 45, 500, 9000) && good;
  good = check(33, 200, 5000, 300) && good;
  return !good;
}
