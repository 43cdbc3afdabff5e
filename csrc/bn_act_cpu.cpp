// Batch norm, residual and ReLU: one pass for the sums and one for the result, threads over parts
// of the rows. Several rows make one tile, in which channel values are repeated, so that the inner
// loops are long and know no channels.
#include <vector>

#include "bfloat16.h"
#include "bn_act_math.h"
#include "ops.h"
#include "parallel.h"

namespace fasthg {
namespace {

constexpr int64_t kTile = 128;  // values, at least: a few vectors, and small beside the caches

template <typename T>
using Real = typename Accumulate<T>::type;

// Values that start a cache line, so that no vector of them lies across two.
template <typename T>
class Line {
 public:
  explicit Line(int64_t count) : blocks_(count * sizeof(T) / sizeof(Block) + 1) {}
  T* data() { return blocks_.data()->values; }
  const T* data() const { return blocks_.data()->values; }
  T& operator[](int64_t i) { return data()[i]; }
  T operator[](int64_t i) const { return data()[i]; }

 private:
  struct alignas(64) Block {
    T values[64 / sizeof(T)];
  };
  std::vector<Block> blocks_;
};

// What the passes read of one value after the other. All per-channel values are repeated to a tile.
template <typename T>
struct Pass {
  int64_t tile;
  bool relu;
  const Real<T>*mean, *scale, *beta;       // mean is the origin in the pass of the moments
  const Real<T>*centred_scale, *constant;  // of the last pass
  const T *x, *residual, *y, *grad_y;      // residual of the forward, y of the backward, or null
  T *result, *grad_residual;               // grad_residual or null
};

template <bool relu, bool with_y, typename T>
FASTHG_HD Real<T> relu_backward(const Pass<T>& p, int64_t at, int64_t i) {
  const Real<T> grad_y = widen(p.grad_y[at]);
  if (!relu) return grad_y;
  if (with_y) return rectified_backward(widen(p.y[at]), grad_y);
  return rectified_backward(normalised(widen(p.x[at]), p.mean[i], p.scale[i], p.beta[i]), grad_y);
}

template <typename T>
FASTHG_HD void moments_of(const Pass<T>& p, int64_t begin, int64_t end, Real<T>* sum,
                          Real<T>* squares) {
  const Real<T>* origin = p.mean;
  const T* x = p.x;
  const int64_t tile = p.tile;
  int64_t at = begin;
  // Four at once, for the sums to be loaded and stored less often.
  for (; at + 4 * tile <= end; at += 4 * tile) {
#pragma omp simd
    for (int64_t i = 0; i < tile; ++i) {
      const T* four = x + at + i;
      const Real<T> a = widen(four[0]) - origin[i], b = widen(four[tile]) - origin[i];
      const Real<T> c = widen(four[2 * tile]) - origin[i], d = widen(four[3 * tile]) - origin[i];
      sum[i] += (a + b) + (c + d);
      squares[i] += (a * a + b * b) + (c * c + d * d);
    }
  }
  for (; at < end; at += tile) {
    const int64_t length = std::min(tile, end - at);
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      const Real<T> value = widen(x[at + i]) - origin[i];
      sum[i] += value;
      squares[i] += value * value;
    }
  }
}

template <bool relu, bool with_y, typename T>
FASTHG_HD void slopes_if(const Pass<T>& p, int64_t begin, int64_t end, Real<T>* sum,
                         Real<T>* products) {
  const int64_t tile = p.tile;
  int64_t at = begin;
  for (; at + 2 * tile <= end; at += 2 * tile) {
#pragma omp simd
    for (int64_t i = 0; i < tile; ++i) {
      const Real<T> a = relu_backward<relu, with_y>(p, at + i, i);
      const Real<T> b = relu_backward<relu, with_y>(p, at + tile + i, i);
      sum[i] += a + b;
      products[i] +=
          a * (widen(p.x[at + i]) - p.mean[i]) + b * (widen(p.x[at + tile + i]) - p.mean[i]);
    }
  }
  for (; at < end; at += tile) {
    const int64_t length = std::min(tile, end - at);
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      const Real<T> value = relu_backward<relu, with_y>(p, at + i, i);
      sum[i] += value;
      products[i] += value * (widen(p.x[at + i]) - p.mean[i]);
    }
  }
}

template <typename T>
FASTHG_HD void slopes_of(const Pass<T>& p, int64_t begin, int64_t end, Real<T>* sum,
                         Real<T>* products) {
  if (!p.relu)
    slopes_if<false, false>(p, begin, end, sum, products);
  else if (p.y)
    slopes_if<true, true>(p, begin, end, sum, products);
  else
    slopes_if<true, false>(p, begin, end, sum, products);
}

template <bool relu, bool with_residual, typename T>
FASTHG_HD void result_if(const Pass<T>& p, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; at += p.tile) {
    const int64_t length = std::min(p.tile, end - at);
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      Real<T> value = normalised(widen(p.x[at + i]), p.mean[i], p.scale[i], p.beta[i]);
      if (with_residual) value += widen(p.residual[at + i]);
      store(relu ? rectified(value) : value, p.result + at + i);
    }
  }
}

template <typename T>
FASTHG_HD void result_of(const Pass<T>& p, int64_t begin, int64_t end) {
  if (p.residual)
    p.relu ? result_if<true, true>(p, begin, end) : result_if<false, true>(p, begin, end);
  else
    p.relu ? result_if<true, false>(p, begin, end) : result_if<false, false>(p, begin, end);
}

template <bool relu, bool with_y, typename T>
FASTHG_HD void gradient_if(const Pass<T>& p, int64_t begin, int64_t end) {
  for (int64_t at = begin; at < end; at += p.tile) {
    const int64_t length = std::min(p.tile, end - at);
#pragma omp simd
    for (int64_t i = 0; i < length; ++i) {
      const Real<T> grad_y = relu_backward<relu, with_y>(p, at + i, i);
      const Real<T> centred = widen(p.x[at + i]) - p.mean[i];
      store(grad_y * p.scale[i] + (centred * p.centred_scale[i] + p.constant[i]),
            p.result + at + i);
      if (with_y) store(grad_y, p.grad_residual + at + i);
    }
  }
}

template <typename T>
FASTHG_HD void gradient_of(const Pass<T>& p, int64_t begin, int64_t end) {
  if (!p.relu)
    gradient_if<false, false>(p, begin, end);
  else if (p.y)
    gradient_if<true, true>(p, begin, end);
  else
    gradient_if<true, false>(p, begin, end);
}

// Clones are made of plain functions only, so each type has its own. Begin and end count values.
#define FASTHG_PASSES(T)                                                                   \
  FASTHG_VECTOR_CLONES void add_moments(const Pass<T>& p, int64_t begin, int64_t end,      \
                                        Real<T>* first, Real<T>* second) {                 \
    moments_of(p, begin, end, first, second);                                              \
  }                                                                                        \
  FASTHG_VECTOR_CLONES void add_slopes(const Pass<T>& p, int64_t begin, int64_t end,       \
                                       Real<T>* first, Real<T>* second) {                  \
    slopes_of(p, begin, end, first, second);                                               \
  }                                                                                        \
  FASTHG_VECTOR_CLONES void write_result(const Pass<T>& p, int64_t begin, int64_t end) {   \
    result_of(p, begin, end);                                                              \
  }                                                                                        \
  FASTHG_VECTOR_CLONES void write_gradient(const Pass<T>& p, int64_t begin, int64_t end) { \
    gradient_of(p, begin, end);                                                            \
  }
FASTHG_PASSES(float)
FASTHG_PASSES(double)
FASTHG_PASSES(BFloat16)
#undef FASTHG_PASSES

template <typename T>
class Work {
 public:
  Work(const BatchNorm& norm, int threads)
      : norm_(norm),
        repeats_(norm.channels ? std::max<int64_t>(1, kTile / norm.channels) : 1),
        tile_(repeats_ * norm.channels),
        workers_(norm.parts
                     ? worker_count(norm.parts, norm.rows * norm.channels / norm.parts, threads)
                     : 1) {}

  int64_t tile() const { return tile_; }

  // (channels,) repeated to a tile.
  template <typename Value>
  Line<Real<T>> repeated(const Value& value_of_channel) const {
    Line<Real<T>> values(tile_);
    for (int64_t i = 0; i < tile_; ++i) values[i] = value_of_channel(i % norm_.channels);
    return values;
  }

  // Calls body(worker, part, first value, last value + 1).
  template <typename Body>
  void each_part(const Body& body) const {
    parallel_for(norm_.parts, workers_, [&](int worker, int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part)
        body(worker, part, norm_.rows * part / norm_.parts * norm_.channels,
             norm_.rows * (part + 1) / norm_.parts * norm_.channels);
    });
  }

  // Sums of each channel over all rows, two of them, (2, channels): tiles in Real, parts in double.
  template <typename Add>
  std::vector<double> sums(const Add& add) const {
    const int64_t channels = norm_.channels;
    std::vector<Line<Real<T>>> tiles(workers_, Line<Real<T>>(2 * tile_));
    auto* partial = static_cast<Real<T>*>(norm_.workspace);
    each_part([&](int worker, int64_t part, int64_t begin, int64_t end) {
      Line<Real<T>>& sum = tiles[worker];
      std::fill(sum.data(), sum.data() + 2 * tile_, Real<T>(0));
      add(begin, end, sum.data(), sum.data() + tile_);
      Real<T>* out = partial + part * 2 * channels;
      for (int64_t which = 0; which < 2; ++which)
        for (int64_t c = 0; c < channels; ++c) {
          Real<T> total = 0;
          for (int64_t k = 0; k < repeats_; ++k) total += sum[which * tile_ + k * channels + c];
          out[which * channels + c] = total;
        }
    });
    std::vector<double> totals(2 * channels);
    for (int64_t part = 0; part < norm_.parts; ++part)
      for (int64_t i = 0; i < 2 * channels; ++i) totals[i] += partial[part * 2 * channels + i];
    return totals;
  }

 private:
  const BatchNorm& norm_;
  const int64_t repeats_, tile_;
  const int workers_;
};

// The per-channel values of both directions.
template <typename T>
struct Channels {
  explicit Channels(const BatchNorm& norm)
      : beta(static_cast<const Real<T>*>(norm.beta)),
        gamma(static_cast<const Real<T>*>(norm.gamma)),
        mean(static_cast<Real<T>*>(norm.mean)),
        var(static_cast<Real<T>*>(norm.var)),
        eps(norm.eps) {}
  Real<T> deviation(int64_t c) const { return reciprocal_deviation(var[c], eps); }
  Real<T> scale(int64_t c) const { return gamma ? deviation(c) * gamma[c] : deviation(c); }

  const Real<T>*beta, *gamma;
  Real<T>*mean, *var;
  double eps;
};

template <typename T>
const char* forward(const BatchNorm& norm, const void* x, const void* residual, void* y,
                    int threads) {
  const Work<T> work(norm, threads);
  const Channels<T> channel(norm);
  Pass<T> pass{};
  pass.tile = work.tile();
  pass.relu = norm.relu;
  pass.x = static_cast<const T*>(x);
  pass.residual = static_cast<const T*>(residual);
  pass.result = static_cast<T*>(y);
  if (!norm.frozen) {
    const auto origin = work.repeated([&](int64_t c) { return widen(pass.x[c]); });
    pass.mean = origin.data();
    const auto sums = work.sums([&](int64_t begin, int64_t end, Real<T>* first, Real<T>* second) {
      add_moments(pass, begin, end, first, second);
    });
    for (int64_t c = 0; c < norm.channels; ++c) {
      const Moments m = moments(sums[c], sums[norm.channels + c], origin[c], norm.rows);
      channel.mean[c] = static_cast<Real<T>>(m.mean);
      channel.var[c] = static_cast<Real<T>>(m.var);
    }
  }
  if (!y) return nullptr;
  const auto mean = work.repeated([&](int64_t c) { return channel.mean[c]; });
  const auto scale = work.repeated([&](int64_t c) { return channel.scale(c); });
  const auto beta = work.repeated([&](int64_t c) { return channel.beta[c]; });
  pass.mean = mean.data();
  pass.scale = scale.data();
  pass.beta = beta.data();
  work.each_part([&](int, int64_t, int64_t begin, int64_t end) { write_result(pass, begin, end); });
  return nullptr;
}

template <typename T>
const char* backward(const BatchNorm& norm, const void* x, const void* y, const void* grad_y,
                     void* grad_x, void* grad_residual, void* grad_beta, void* grad_gamma,
                     int threads) {
  const Work<T> work(norm, threads);
  const Channels<T> channel(norm);
  const auto mean = work.repeated([&](int64_t c) { return channel.mean[c]; });
  const auto scale = work.repeated([&](int64_t c) { return channel.scale(c); });
  const auto beta = work.repeated([&](int64_t c) { return channel.beta[c]; });
  Pass<T> pass{};
  pass.tile = work.tile();
  pass.relu = norm.relu;
  pass.mean = mean.data();
  pass.scale = scale.data();
  pass.beta = beta.data();
  pass.x = static_cast<const T*>(x);
  pass.y = static_cast<const T*>(y);
  pass.grad_y = static_cast<const T*>(grad_y);
  pass.result = static_cast<T*>(grad_x);
  pass.grad_residual = static_cast<T*>(grad_residual);
  const auto sums = work.sums([&](int64_t begin, int64_t end, Real<T>* first, Real<T>* second) {
    add_slopes(pass, begin, end, first, second);
  });
  auto* for_beta = static_cast<Real<T>*>(grad_beta);
  auto* for_gamma = static_cast<Real<T>*>(grad_gamma);
  for (int64_t c = 0; c < norm.channels; ++c) {
    for_beta[c] = static_cast<Real<T>>(sums[c]);
    for_gamma[c] = static_cast<Real<T>>(sums[norm.channels + c] * channel.deviation(c));
  }
  const auto slope_of = [&](int64_t c) {
    return slope(channel.scale(c), channel.deviation(c), for_beta[c], for_gamma[c], norm.rows,
                 norm.frozen);
  };
  const auto centred_scale = work.repeated([&](int64_t c) { return slope_of(c).centred_scale; });
  const auto constant = work.repeated([&](int64_t c) { return slope_of(c).constant; });
  pass.centred_scale = centred_scale.data();
  pass.constant = constant.data();
  work.each_part(
      [&](int, int64_t, int64_t begin, int64_t end) { write_gradient(pass, begin, end); });
  return nullptr;
}

constexpr const char* kWrongDtype = "bn_act on the CPU takes float32, float64 and bfloat16";

}  // namespace
}  // namespace fasthg

const char* fasthg_bn_act_cpu(int dtype, const fasthg::BatchNorm* norm, const void* x,
                              const void* residual, void* y, int threads) {
  using namespace fasthg;
  if (dtype == kFloat32) return forward<float>(*norm, x, residual, y, threads);
  if (dtype == kFloat64) return forward<double>(*norm, x, residual, y, threads);
  if (dtype == kBFloat16) return forward<BFloat16>(*norm, x, residual, y, threads);
  return kWrongDtype;
}

const char* fasthg_bn_act_backward_cpu(int dtype, const fasthg::BatchNorm* norm, const void* x,
                                       const void* y, const void* grad_y, void* grad_x,
                                       void* grad_residual, void* grad_beta, void* grad_gamma,
                                       int threads) {
  using namespace fasthg;
  if (dtype == kFloat32)
    return backward<float>(*norm, x, y, grad_y, grad_x, grad_residual, grad_beta, grad_gamma,
                           threads);
  if (dtype == kFloat64)
    return backward<double>(*norm, x, y, grad_y, grad_x, grad_residual, grad_beta, grad_gamma,
                            threads);
  if (dtype == kBFloat16)
    return backward<BFloat16>(*norm, x, y, grad_y, grad_x, grad_residual, grad_beta, grad_gamma,
                              threads);
  return kWrongDtype;
}
