// One step of RMSProp and moving averages on the CPU, threads over blocks of the values. Formulas:
// rmsprop_ema_math.h.
//
// Fused: average, L2, mean square, momentum and weight in one pass over flat buffers. As single
// operations on whole tensors each of them would read and write memory again.
//
// Memory traffic, in weights: 5 (gradient read, values and squares read and written), 2 more each
// for momenta and averages, which is the floor.
//
// A block of 1024 values stays in the first-level cache, so the loops over it (averages, update),
// each of which vectorises, cost one pass over memory together. One loop with all cases
// inside would branch for every value.
#include <algorithm>

#include "ops.h"
#include "parallel.h"
#include "rmsprop_ema_math.h"

namespace fasthg {
namespace {

constexpr int64_t kBlock = 1024;

template <typename T>
struct Buffers {
  T* values;
  const T* gradient;
  T *squares, *momenta, *averages;

  explicit Buffers(const RmspropStep& step)
      : values(static_cast<T*>(step.values)),
        gradient(static_cast<const T*>(step.gradient)),
        squares(static_cast<T*>(step.squares)),
        momenta(static_cast<T*>(step.momenta)),
        averages(static_cast<T*>(step.averages)) {}
};

template <typename T>
FASTHG_HD void average_block(const T* __restrict__ values, T weight, int64_t begin, int64_t end,
                             T* __restrict__ averages) {
  for (int64_t i = begin; i < end; ++i)
    averages[i] = update_average(averages[i], values[i], weight);
}

template <typename T>
FASTHG_HD void plain_block(const T* __restrict__ gradient, T weight_decay,
                           const RmspropConstants<T>& constants, int64_t begin, int64_t end,
                           T* __restrict__ weights, T* __restrict__ squares) {
  const RmspropConstants<T> c = constants;
  for (int64_t i = begin; i < end; ++i)
    weights[i] -= rmsprop_change(weights[i], gradient[i], weight_decay, c, squares[i]);
}

template <typename T>
FASTHG_HD void momentum_block(const T* __restrict__ gradient, T weight_decay,
                              const RmspropConstants<T>& constants, int64_t begin, int64_t end,
                              T* __restrict__ weights, T* __restrict__ squares,
                              T* __restrict__ momenta) {
  const RmspropConstants<T> c = constants;
  for (int64_t i = begin; i < end; ++i) {
    const T change = rmsprop_change(weights[i], gradient[i], weight_decay, c, squares[i]);
    momenta[i] = c.momentum * momenta[i] + change;
    weights[i] -= momenta[i];
  }
}

// One block: values from `begin` on, as many as `kBlock` or up to `total`.
template <typename T>
FASTHG_HD void update(const Buffers<T>& b, const RmspropStep& step, const RmspropConstants<T>& c,
                      bool skip, int64_t begin) {
  const int64_t end = std::min(begin + kBlock, step.total);
  while (begin < end) {
    // Up to the next border all values are treated alike: decayed, plain weight, or averages only.
    int64_t stop = end;
    for (const int64_t border : {step.decayed, step.weights})
      if (begin < border) stop = std::min(stop, border);
    if (b.averages) average_block(b.values, c.average_weight, begin, stop, b.averages);
    if (begin < step.weights && !skip) {
      const T weight_decay = begin < step.decayed ? c.weight_decay : T(0);
      if (b.momenta)
        momentum_block(b.gradient, weight_decay, c, begin, stop, b.values, b.squares, b.momenta);
      else
        plain_block(b.gradient, weight_decay, c, begin, stop, b.values, b.squares);
    }
    begin = stop;
  }
}

// target_clones takes plain functions, no templates, so each type has its own.
FASTHG_VECTOR_CLONES void block(const Buffers<float>& b, const RmspropStep& step,
                                const RmspropConstants<float>& c, bool skip, int64_t begin) {
  update(b, step, c, skip, begin);
}
FASTHG_VECTOR_CLONES void block(const Buffers<double>& b, const RmspropStep& step,
                                const RmspropConstants<double>& c, bool skip, int64_t begin) {
  update(b, step, c, skip, begin);
}

template <typename T>
const char* run(const RmspropStep& step, int threads) {
  const Buffers<T> buffers(step);
  const RmspropConstants<T> constants(step);
  const bool skip = step.found_inf && *step.found_inf != 0;
  // Threads get whole blocks. The last few values of a loop may be rounded differently from the
  // vectors before them (fused multiply-add), so its ends must not depend on the number of threads.
  const int64_t blocks = (step.total + kBlock - 1) / kBlock;
  parallel_for(blocks, worker_count(blocks, kBlock, threads), [&](int, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) block(buffers, step, constants, skip, i * kBlock);
  });
  return nullptr;
}

}  // namespace
}  // namespace fasthg

const char* fasthg_rmsprop_ema_cpu(int dtype, const fasthg::RmspropStep* step, int threads) {
  if (dtype == fasthg::kFloat32) return fasthg::run<float>(*step, threads);
  if (dtype == fasthg::kFloat64) return fasthg::run<double>(*step, threads);
  return "rmsprop_ema takes float32 and float64";
}
