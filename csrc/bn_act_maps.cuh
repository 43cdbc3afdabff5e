// What the two CUDA variants of bn_act share: bn_act_cuda.cu, three launches each way for maps of
// any size, and bn_act_on_chip_cuda.cu, one launch for small ones.
#pragma once

#include "bn_act_math.h"
#include "cuda_utils.cuh"

namespace fasthg {

// The arguments of a launcher; null where a direction or a case does without.
struct BnActCall {
  const BatchNorm& norm;
  const void *x, *residual, *y, *grad_y;
  void *result, *grad_residual, *grad_beta, *grad_gamma;
  void* stream;
};

// Runs the direction that the call is of in one launch, where the maps allow it. False: they do
// not, and nothing was launched; else the refusal is set, null if there is none.
bool bn_act_on_chip(int dtype, const BnActCall& call, const char** refusal);

// What the kernels read and write; null where a case does without.
template <typename T>
struct Maps {
  const T *x, *residual, *y, *grad_y;
  T *result, *grad_residual;

  explicit Maps(const BnActCall& call)
      : x(static_cast<const T*>(call.x)),
        residual(static_cast<const T*>(call.residual)),
        y(static_cast<const T*>(call.y)),
        grad_y(static_cast<const T*>(call.grad_y)),
        result(static_cast<T*>(call.result)),
        grad_residual(static_cast<T*>(call.grad_residual)) {}
};

// Whether every row is made of whole vectors.
template <typename T>
bool in_vectors(const BnActCall& call) {
  return call.norm.channels % kVectorLength<T> == 0 && aligned16(call.x) &&
         aligned16(call.residual) && aligned16(call.y) && aligned16(call.grad_y) &&
         aligned16(call.result) && aligned16(call.grad_residual);
}

// Per-channel values of `vector` neighbouring channels.
template <typename Real, int vector>
struct Channels {
  Real mean[vector], deviation[vector], scale[vector], beta[vector];
  __device__ Channels(const BatchNorm& norm, int channel)
      : Channels(norm, channel, static_cast<const Real*>(norm.mean) + channel,
                 static_cast<const Real*>(norm.var) + channel) {}
  // With statistics that lie elsewhere: of these channels alone.
  __device__ Channels(const BatchNorm& norm, int channel, const Real* means,
                      const Real* variances) {
    const Real* gamma = static_cast<const Real*>(norm.gamma);
#pragma unroll
    for (int k = 0; k < vector; ++k) {
      mean[k] = means[k];
      deviation[k] = reciprocal_deviation(variances[k], norm.eps);
      scale[k] = gamma ? deviation[k] * gamma[channel + k] : deviation[k];
      beta[k] = static_cast<const Real*>(norm.beta)[channel + k];
    }
  }
};

// The gradient behind the ReLU, which replaces grad_y.
template <typename T, int vector, typename Real>
__device__ void relu_backward_(const BatchNorm& norm, const Maps<T>& maps, int64_t at,
                               const Channels<Real, vector>& channel, const Vector<T, vector>& x,
                               Real* grad_y) {
  if (!norm.relu) return;
  Vector<T, vector> y;
  if (maps.y) y = *reinterpret_cast<const Vector<T, vector>*>(maps.y + at);
#pragma unroll
  for (int k = 0; k < vector; ++k)
    grad_y[k] =
        rectified_backward(maps.y ? static_cast<Real>(y.value[k])
                                  : normalised(static_cast<Real>(x.value[k]), channel.mean[k],
                                               channel.scale[k], channel.beta[k]),
                           grad_y[k]);
}

// One vector of the result.
template <typename T, int vector, typename Real>
__device__ void write_result(const BatchNorm& norm, const Maps<T>& maps, int64_t at,
                             const Channels<Real, vector>& channel, const Vector<T, vector>& x) {
  Vector<T, vector> added, result;
  if (maps.residual) added = *reinterpret_cast<const Vector<T, vector>*>(maps.residual + at);
#pragma unroll
  for (int k = 0; k < vector; ++k) {
    Real value = normalised(static_cast<Real>(x.value[k]), channel.mean[k], channel.scale[k],
                            channel.beta[k]);
    if (maps.residual) value += static_cast<Real>(added.value[k]);
    result.value[k] = static_cast<T>(norm.relu ? rectified(value) : value);
  }
  *reinterpret_cast<Vector<T, vector>*>(maps.result + at) = result;
}

// One vector of the gradient; grad_y is the one behind the ReLU.
template <typename T, int vector, typename Real>
__device__ void write_gradient(const Maps<T>& maps, int64_t at,
                               const Channels<Real, vector>& channel,
                               const Real (&centred_scale)[vector], const Real (&constant)[vector],
                               const Vector<T, vector>& x, const Real* grad_y) {
  Vector<T, vector> result;
#pragma unroll
  for (int k = 0; k < vector; ++k) {
    const Real centred = static_cast<Real>(x.value[k]) - channel.mean[k];
    result.value[k] =
        static_cast<T>(grad_y[k] * channel.scale[k] + (centred * centred_scale[k] + constant[k]));
  }
  *reinterpret_cast<Vector<T, vector>*>(maps.result + at) = result;
}

}  // namespace fasthg
