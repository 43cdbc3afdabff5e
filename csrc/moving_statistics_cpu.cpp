// Moving statistics of all batch norms at once on the CPU, threads over blocks of the values.
//
//   running += weight (correction batch - running)
//
// Fused: means and variances of all layers lie in one buffer, so a step is one call in place of two
// for each layer. Memory traffic: 4 values for each statistic (running read and written, batch and
// correction read). correction could be one number a layer, which would save a quarter; it is
// stored per value so that the loop needs no borders between layers.
#include <algorithm>

#include "moving_statistics_math.h"
#include "ops.h"
#include "parallel.h"

namespace fasthg {
namespace {

constexpr int64_t kBlock = 1024;

template <typename T>
FASTHG_HD void update_range(const T* __restrict__ batch, const T* __restrict__ correction, T weight,
                            int64_t begin, int64_t end, T* __restrict__ running) {
  for (int64_t i = begin; i < end; ++i)
    running[i] = update_statistic(running[i], batch[i], correction[i], weight);
}
// target_clones takes plain functions, no templates, so each type has its own.
FASTHG_VECTOR_CLONES void update_block(const float* batch, const float* correction, float weight,
                                       int64_t begin, int64_t end, float* running) {
  update_range(batch, correction, weight, begin, end, running);
}
FASTHG_VECTOR_CLONES void update_block(const double* batch, const double* correction, double weight,
                                       int64_t begin, int64_t end, double* running) {
  update_range(batch, correction, weight, begin, end, running);
}

template <typename T>
const char* run(void* running, const void* batch, const void* correction, const void* weight,
                int64_t count, int threads) {
  // Threads get whole blocks. The last few values of a loop may be rounded differently from the
  // vectors before them (fused multiply-add), so its ends must not depend on the number of threads.
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  parallel_for(blocks, worker_count(blocks, kBlock, threads), [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      update_block(static_cast<const T*>(batch), static_cast<const T*>(correction),
                   *static_cast<const T*>(weight), i * kBlock, std::min((i + 1) * kBlock, count),
                   static_cast<T*>(running));
  });
  return nullptr;
}

}  // namespace
}  // namespace fasthg

const char* fasthg_moving_statistics_cpu(int dtype, void* running, const void* batch,
                                         const void* correction, const void* weight, int64_t count,
                                         int threads) {
  using namespace fasthg;
  if (dtype == kFloat32) return run<float>(running, batch, correction, weight, count, threads);
  if (dtype == kFloat64) return run<double>(running, batch, correction, weight, count, threads);
  return "moving_statistics takes float32 and float64";
}
