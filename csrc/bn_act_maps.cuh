// Code shared by the CUDA variants of bn_act: bn_act_cuda.cu takes three launches each way for maps
// of any size, bn_act_on_chip_cuda.cu one launch for maps of few rows, bn_act_cluster_cuda.cu one
// launch for the others on GPUs that have clusters. Here are the arguments of all of them, the
// per-channel parameters in registers, and the arithmetic of one vector of channels:
//   y = relu?((x - mean) * scale + beta + residual)
//   grad_x = grad_y * scale + ((x - mean) * x_centred_scale + constant)
// with grad_y after the ReLU mask; bn_act_math.h derives the coefficients.
//
// Where a residual was added before the ReLU, the mask is read from y, which the next layer keeps
// for its own backward anyway. Without a residual the mask follows from x, mean, scale and beta, so
// y is not read: that saves one map of traffic in each pass of the backward.
#pragma once

#include "bn_act_math.h"
#include "cuda_utils.cuh"

namespace fasthg {

// The arguments of a launcher. A forward call has no grad_y; pointers that a call does not need are
// null.
struct BnActCall {
  const BatchNorm& norm;
  const void *x, *residual, *y, *grad_y;
  void *result, *grad_residual, *grad_beta, *grad_gamma;
  void* stream;
};

// Runs the forward or the backward of the call in one launch, if its maps fit into shared memory.
// Returns false if they do not; nothing was launched then. Returns true otherwise and sets refusal,
// to null if the launch was accepted.
bool bn_act_on_chip(int dtype, const BnActCall& call, const char** refusal);

// The same by clusters of blocks, if norm.cluster_blocks asks for them and the maps are in vectors.
bool bn_act_in_clusters(int dtype, const BnActCall& call, const char** refusal);

// The maps a kernel reads and writes, typed; null where a call does not have them.
template <typename T>
struct BnActMaps {
  const T *x, *residual, *y, *grad_y;
  T *result, *grad_residual;

  explicit BnActMaps(const BnActCall& call)
      : x(static_cast<const T*>(call.x)),
        residual(static_cast<const T*>(call.residual)),
        y(static_cast<const T*>(call.y)),
        grad_y(static_cast<const T*>(call.grad_y)),
        result(static_cast<T*>(call.result)),
        grad_residual(static_cast<T*>(call.grad_residual)) {}
};

// Two sums of one channel: of x - origin and its square, or of grad_y and grad_y (x - mean).
struct SumPair {
  double first, second;
};

// Whether all maps can be read and written in vectors of 16 bytes.
template <typename T>
bool in_vectors(const BnActCall& call) {
  return call.norm.channels % kVectorLength<T> == 0 && aligned16(call.x) &&
         aligned16(call.residual) && aligned16(call.y) && aligned16(call.grad_y) &&
         aligned16(call.result) && aligned16(call.grad_residual);
}

// The per-channel parameters of `vector` neighbouring channels, in registers.
template <typename Real, int vector>
struct ChannelParams {
  Real mean[vector], inv_std[vector], scale[vector], beta[vector];
  __device__ ChannelParams(const BatchNorm& norm, int channel)
      : ChannelParams(norm, channel, static_cast<const Real*>(norm.mean) + channel,
                      static_cast<const Real*>(norm.var) + channel) {}
  // means, variances: of these channels only, as they lie in shared memory.
  __device__ ChannelParams(const BatchNorm& norm, int channel, const Real* means,
                           const Real* variances) {
    const Real* gamma = static_cast<const Real*>(norm.gamma);
#pragma unroll
    for (int k = 0; k < vector; ++k) {
      mean[k] = means[k];
      inv_std[k] = inv_std_of_var(variances[k], norm.eps);
      scale[k] = gamma ? inv_std[k] * gamma[channel + k] : inv_std[k];
      beta[k] = static_cast<const Real*>(norm.beta)[channel + k];
    }
  }
};

// Apply the ReLU mask in place: grad_y = 0 where y (if given) or else the pre-activation computed
// from x is <= 0. Without a ReLU nothing changes. y: read before, any values where there is none.
template <typename T, int vector, typename Real>
__device__ void apply_relu_mask(const BatchNorm& norm, const BnActMaps<T>& maps,
                                const ChannelParams<Real, vector>& channel,
                                const Vector<T, vector>& x, const Vector<T, vector>& y,
                                Real* grad_y) {
  if (!norm.relu) return;
#pragma unroll
  for (int k = 0; k < vector; ++k)
    grad_y[k] = relu_backward(maps.y ? static_cast<Real>(y.value[k])
                                     : normalise(static_cast<Real>(x.value[k]), channel.mean[k],
                                                 channel.scale[k], channel.beta[k]),
                              grad_y[k]);
}

// The same, reading y.
template <typename T, int vector, typename Real>
__device__ void apply_relu_mask(const BatchNorm& norm, const BnActMaps<T>& maps, int64_t offset,
                                const ChannelParams<Real, vector>& channel,
                                const Vector<T, vector>& x, Real* grad_y) {
  using Values = Vector<T, vector>;
  const Values y = maps.y ? *reinterpret_cast<const Values*>(maps.y + offset) : x;
  apply_relu_mask(norm, maps, channel, x, y, grad_y);
}

// Write one vector of y. added: the residual there, any values where there is none.
template <typename T, int vector, typename Real>
__device__ void write_result(const BatchNorm& norm, const BnActMaps<T>& maps, int64_t offset,
                             const ChannelParams<Real, vector>& channel, const Vector<T, vector>& x,
                             const Vector<T, vector>& added) {
  Vector<T, vector> result;
#pragma unroll
  for (int k = 0; k < vector; ++k) {
    Real value = normalise(static_cast<Real>(x.value[k]), channel.mean[k], channel.scale[k],
                           channel.beta[k]);
    if (maps.residual) value += static_cast<Real>(added.value[k]);
    result.value[k] = static_cast<T>(norm.relu ? apply_relu(value) : value);
  }
  *reinterpret_cast<Vector<T, vector>*>(maps.result + offset) = result;
}

// The same, reading the residual.
template <typename T, int vector, typename Real>
__device__ void write_result(const BatchNorm& norm, const BnActMaps<T>& maps, int64_t offset,
                             const ChannelParams<Real, vector>& channel,
                             const Vector<T, vector>& x) {
  using Values = Vector<T, vector>;
  const Values added = maps.residual ? *reinterpret_cast<const Values*>(maps.residual + offset) : x;
  write_result(norm, maps, offset, channel, x, added);
}

// Write one vector of grad_x; grad_y: after the ReLU mask.
template <typename T, int vector, typename Real>
__device__ void write_grad_x(const BnActMaps<T>& maps, int64_t offset,
                             const ChannelParams<Real, vector>& channel,
                             const Real (&x_centred_scale)[vector], const Real (&constant)[vector],
                             const Vector<T, vector>& x, const Real* grad_y) {
  Vector<T, vector> result;
#pragma unroll
  for (int k = 0; k < vector; ++k) {
    const Real x_centred = static_cast<Real>(x.value[k]) - channel.mean[k];
    result.value[k] = static_cast<T>(grad_y[k] * channel.scale[k] +
                                     (x_centred * x_centred_scale[k] + constant[k]));
  }
  *reinterpret_cast<Vector<T, vector>*>(maps.result + offset) = result;
}

}  // namespace fasthg
