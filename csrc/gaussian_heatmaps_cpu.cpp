// Target maps on the CPU: one image at a time, threads over the batch.
//
//   heatmap[i, j] = across[i] down[j], the separable Gaussian of gaussian_heatmaps_math.h
//
// An image's tables are parts * (width + height) exponentials; then each value is one
// multiplication and is written once. Memory traffic is that write alone: the tables stay in the
// caches. An exponential for each cell would be width * height a map in place of width + height.
#include "gaussian_rows.h"
#include "ops.h"
#include "parallel.h"

namespace fasthg {
namespace {

template <typename T>
FASTHG_HD void draw(GaussianRows<T>& rows, T* image) {
  for (int64_t row = 0; row < rows.rows(); ++row) rows.write(row, image + row * rows.length());
}
FASTHG_VECTOR_CLONES void draw_image(GaussianRows<float>& rows, float* image) {
  draw(rows, image);
}
FASTHG_VECTOR_CLONES void draw_image(GaussianRows<double>& rows, double* image) {
  draw(rows, image);
}

template <typename T>
void gaussian_heatmaps(const Targets& targets, T* heatmaps, bool channels_last, int threads) {
  const GaussianRows<T> empty(targets, channels_last);
  const int64_t size = empty.image_size();
  const int workers = worker_count(targets.batch, size, threads);
  std::vector<GaussianRows<T>> tables(workers, empty);
  parallel_for(targets.batch, workers, [&](int worker, int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      tables[worker].load(image);
      draw_image(tables[worker], heatmaps + image * size);
    }
  });
}

}  // namespace
}  // namespace fasthg

const char* fasthg_gaussian_heatmaps_cpu(int dtype, const fasthg::Targets* targets, void* heatmaps,
                                         bool channels_last, int threads) {
  using namespace fasthg;
  if (dtype == kFloat32)
    gaussian_heatmaps(*targets, static_cast<float*>(heatmaps), channels_last, threads);
  else if (dtype == kFloat64)
    gaussian_heatmaps(*targets, static_cast<double*>(heatmaps), channels_last, threads);
  else
    return "gaussian_heatmaps on the CPU takes float32 and float64";
  return nullptr;
}
