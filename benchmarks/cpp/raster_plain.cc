// A plain scan-line rasteriser beside the kernel of tkjax/ops/cpu/src/rasterize.cc, both on one thread of this program,
// compiled with the same flags (benchmarks/raster_plain.py). Prints faces, pixels that differ, and milliseconds of each.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "rasterize.h"

using namespace tkjax;
using namespace tkjax::TKJAX_ISA;

namespace {

struct OneThread final : Pool {
  int threads() const override { return 1; }
  void run(int64_t tasks, void (*fn)(void*, int64_t), void* ctx) override {
    for (int64_t i = 0; i < tasks; ++i) fn(ctx, i);
  }
};

// Face by face, row by row, from the left end of the face to its right end.
void plain(const Mesh& m, std::vector<int32_t>& face, std::vector<float>& uv, std::vector<float>& zw) {
  std::fill(face.begin(), face.end(), 0);
  std::fill(uv.begin(), uv.end(), 0.0f);
  std::fill(zw.begin(), zw.end(), std::numeric_limits<float>::infinity());
  for (int64_t f = 0; f < m.count; ++f) {
    float x[3], y[3], z[3], r[3];
    bool front = true;
    for (int k = 0; k < 3; ++k) {
      const float* v = m.clip + 4 * m.faces[3 * f + k];
      front &= v[3] > 0;
      r[k] = 1 / v[3];
      x[k] = (v[0] * r[k] + 1) * 0.5f * m.width - 0.5f;
      y[k] = (v[1] * r[k] + 1) * 0.5f * m.height - 0.5f;
      z[k] = v[2] * r[k];
    }
    const float area = (x[1] - x[0]) * (y[2] - y[0]) - (y[1] - y[0]) * (x[2] - x[0]);
    if (!front || area == 0) continue;
    const float low = std::min({x[0], x[1], x[2]}), high = std::max({x[0], x[1], x[2]});
    const int first = std::max(0, static_cast<int>(std::ceil(std::min({y[0], y[1], y[2]}))));
    const int last = std::min(m.height - 1, static_cast<int>(std::floor(std::max({y[0], y[1], y[2]}))));
    float a[3], b[3], c[3];  // barycentric coordinates in the picture: a x + b y + c
    for (int k = 0; k < 3; ++k) {
      const int i = (k + 1) % 3, j = (k + 2) % 3;
      a[k] = (y[i] - y[j]) / area;
      b[k] = (x[j] - x[i]) / area;
      c[k] = (x[i] * y[j] - x[j] * y[i]) / area;
    }
    for (int row = first; row <= last; ++row) {
      float left = low, right = high;
      for (int k = 0; k < 3; ++k) {
        const float at = b[k] * row + c[k];
        if (a[k] > 0) left = std::max(left, -at / a[k]);
        if (a[k] < 0) right = std::min(right, -at / a[k]);
      }
      const int begin = std::max(0, static_cast<int>(std::ceil(left)));
      const int end = std::min(m.width - 1, static_cast<int>(std::floor(right)));
      for (int column = begin; column <= end; ++column) {
        const float l0 = a[0] * column + b[0] * row + c[0], l1 = a[1] * column + b[1] * row + c[1], l2 = 1 - l0 - l1;
        const float depth = l0 * z[0] + l1 * z[1] + l2 * z[2];
        const int64_t at = int64_t{row} * m.width + column;
        if (!(depth < zw[at]) || depth < -1 || depth > 1) continue;
        const float scale = 1 / (l0 * r[0] + l1 * r[1] + l2 * r[2]);
        zw[at] = depth;
        face[at] = static_cast<int32_t>(f + 1);
        uv[2 * at] = l0 * r[0] * scale;
        uv[2 * at + 1] = l1 * r[1] * scale;
      }
    }
  }
  for (size_t i = 0; i < zw.size(); ++i)
    if (!face[i]) zw[i] = 0;
}

template <typename Body>
double median_ms(int rounds, const Body& body) {
  std::vector<double> all;
  for (int i = 0; i < rounds; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    all.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(all.begin(), all.end());
  return all[all.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const int side = argc > 1 ? std::atoi(argv[1]) : 158, size = argc > 2 ? std::atoi(argv[2]) : 448;
  const int rounds = argc > 3 ? std::atoi(argv[3]) : 21;
  std::vector<float> clip;  // a sphere of latitudes and longitudes, 2 side² faces, seen in perspective
  for (int i = 0; i <= side; ++i)
    for (int j = 0; j < side; ++j) {
      const double theta = M_PI * (i + 0.01) / (side + 0.02), phi = 2 * M_PI * j / side;
      const double x = 0.85 * std::sin(theta) * std::cos(phi), z = 0.85 * std::sin(theta) * std::sin(phi);
      const double w = 3 + z;
      for (double v : {3 * x, 3 * 0.85 * std::cos(theta), z * 3, w}) clip.push_back(static_cast<float>(v));
    }
  std::vector<int32_t> faces;
  for (int i = 0; i < side; ++i)
    for (int j = 0; j < side; ++j) {
      const int a = i * side + j, b = i * side + (j + 1) % side, c = a + side, d = b + side;
      for (int v : {a, b, c, b, d, c}) faces.push_back(v);
    }
  const int64_t vertices = clip.size() / 4, count = faces.size() / 3, pixels = int64_t{size} * size;
  const Mesh mesh{clip.data(), vertices, faces.data(), count, size, size};
  std::vector<int32_t> face(pixels), other(pixels), number(count), kept(count);
  std::vector<float> uv(2 * pixels), zw(pixels), at(2 * vertices), centres(2 * size + RASTER_PAD), zw2(pixels);
  std::vector<float> uv2(2 * pixels);
  std::vector<uint8_t> kind(vertices);
  std::vector<uint32_t> rows(count), columns(count);
  OneThread pool;
  const RasterScratch room{at.data(), kind.data(), centres.data(), rows.data(), columns.data(), number.data(),
                           kept.data()};
  const double ours = median_ms(rounds, [&] { raster_draw(mesh, room, face.data(), uv.data(), zw.data(), pool); });
  const double theirs = median_ms(rounds, [&] { plain(mesh, other, uv2, zw2); });
  int64_t differ = 0, covered = 0;
  float away = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    differ += face[i] != other[i];
    covered += face[i] > 0;
    if (face[i] == other[i]) away = std::max({away, std::fabs(uv[2 * i] - uv2[2 * i]), std::fabs(zw[i] - zw2[i])});
  }
  std::printf("%ld faces, %ld pixels covered, %ld differ, same ones by %.2g: kernel %.3f ms, plain loop %.3f ms\n",
              static_cast<long>(count), static_cast<long>(covered), static_cast<long>(differ), away, ours, theirs);
  return 0;
}
