// Every launcher, on both devices: the table of contents of csrc.
//
// Launchers take raw pointers, never allocate device memory and never synchronise, so that a call
// can be captured in a CUDA graph. They return null, or a message that says what was refused.
// "real" below is the accumulate type: double for kFloat64, float otherwise. `threads` is the most
// CPU threads to use; `device` and `stream` (a cudaStream_t) come last on CUDA.
//
// A map tensor is "channels last" when parts vary fastest in memory, else width does.
// The C linkage lets tests call the launchers without Python bindings.
#pragma once

#include "portable.h"

extern "C" {

// Draw target maps. heatmaps: dtype (batch, parts, height, width), without gaps.
// CPU: float32, float64. CUDA: also float16, bfloat16.
const char* fasthg_gaussian_heatmaps_cpu(int dtype, const fasthg::Targets* targets, void* heatmaps,
                                         bool channels_last, int threads);
const char* fasthg_gaussian_heatmaps_cuda(int dtype, const fasthg::Targets* targets, void* heatmaps,
                                          bool channels_last, int device, void* stream);

// Half the squared distance of predictions to the target maps.
// predictions: dtype (stacks, batch, parts, height, width); the maps of one image have no gaps,
// images lie `batch_stride` and stacks `stack_stride` elements apart. loss: real (stacks, batch).
// CPU: float32, float64. CUDA: also float16, bfloat16.
const char* fasthg_heatmap_mse_cpu(int dtype, const fasthg::Targets* targets, int stacks,
                                   const void* predictions, int64_t stack_stride,
                                   int64_t batch_stride, bool channels_last, void* loss,
                                   int threads);
const char* fasthg_heatmap_mse_cuda(int dtype, const fasthg::Targets* targets, int stacks,
                                    const void* predictions, int64_t stack_stride,
                                    int64_t batch_stride, bool channels_last, void* loss,
                                    int device, void* stream);

// Its gradient with respect to predictions. grad_loss: real (stacks, batch), the derivative with
// respect to each loss. gradient: as predictions, without any gaps.
const char* fasthg_heatmap_mse_backward_cpu(int dtype, const fasthg::Targets* targets, int stacks,
                                            const void* predictions, int64_t stack_stride,
                                            int64_t batch_stride, bool channels_last,
                                            const void* grad_loss, void* gradient, int threads);
const char* fasthg_heatmap_mse_backward_cuda(int dtype, const fasthg::Targets* targets, int stacks,
                                             const void* predictions, int64_t stack_stride,
                                             int64_t batch_stride, bool channels_last,
                                             const void* grad_loss, void* gradient, int device,
                                             void* stream);

// Peak of each map. heatmaps: dtype (batch, parts, height, width) with any strides (elements);
// xy: real (batch, parts, 2) heatmap cells; score: real (batch, parts).
const char* fasthg_heatmap_peaks_cpu(int dtype, const void* heatmaps, const int64_t strides[4],
                                     const int64_t shape[4], int method, void* xy, void* score,
                                     int threads);
const char* fasthg_heatmap_peaks_cuda(int dtype, const void* heatmaps, const int64_t strides[4],
                                      const int64_t shape[4], int method, void* xy, void* score,
                                      int device, void* stream);

// y = relu?((x - mean) / sqrt(var + eps) * gamma + beta + residual).
// x, residual (or null), y (or null: statistics alone): dtype (rows, channels). CPU: float32,
// float64, bfloat16. CUDA: also float16.
const char* fasthg_bn_act_cpu(int dtype, const fasthg::BatchNorm* norm, const void* x,
                              const void* residual, void* y, int threads);
const char* fasthg_bn_act_cuda(int dtype, const fasthg::BatchNorm* norm, const void* x,
                               const void* residual, void* y, int device, void* stream);

// Its gradients. grad_y, grad_x (or null: the sums alone): dtype (rows, channels); grad_beta,
// grad_gamma: real (channels,), both written, or read if norm->sums_given. Where relu follows a
// residual, y (the forward's result) says where it let values through and grad_residual is written,
// both dtype (rows, channels); else they are null.
const char* fasthg_bn_act_backward_cpu(int dtype, const fasthg::BatchNorm* norm, const void* x,
                                       const void* y, const void* grad_y, void* grad_x,
                                       void* grad_residual, void* grad_beta, void* grad_gamma,
                                       int threads);
const char* fasthg_bn_act_backward_cuda(int dtype, const fasthg::BatchNorm* norm, const void* x,
                                        const void* y, const void* grad_y, void* grad_x,
                                        void* grad_residual, void* grad_beta, void* grad_gamma,
                                        int device, void* stream);

// How many clusters of so many blocks a device holds at once for the forward or the backward; 0 if
// it has no clusters of this size. Unlike all others this is no launcher.
int fasthg_bn_act_clusters_cuda(int dtype, bool backward, int blocks, int device);

// y = relu?(x weight^T + x2 weight2^T + bias + residual), of at least one row; see Conv1x1. float16
// and bfloat16. torch computes on the CPU and in the other types, where its product is the faster.
const char* fasthg_conv1x1_act_cuda(int dtype, const fasthg::Conv1x1* conv, int device,
                                    void* stream);

// y = a weight^T + residual, where a is x or, if norm->mean is not null, bn_act_inference of it by
// norm (rows, channels and parts are not read), and the statistics of y. conv: no second pair, bias
// or ReLU; in and outputs are multiples of 8, and x, residual and y start at multiples of 16 bytes.
// workspace: real (rows / 128 rounded up, 2, outputs); mean, var (biased): real (outputs,). At
// least one row. float16 and bfloat16.
const char* fasthg_conv1x1_bn_cuda(int dtype, const fasthg::Conv1x1* conv,
                                   const fasthg::BatchNorm* norm, void* workspace, void* mean,
                                   void* var, int device, void* stream);

// out = g weight^T + conv->residual, the gradient of a convolution's input: conv->x is the gradient
// of norm's result, norm with mean and var, z its input, dtype (rows, in), and g the gradient of z
// by norm and its sums grad_beta and grad_gamma, real (in,). x: null, or dtype (rows, outputs),
// what the norm `below` was made of; then there is no residual, out is 0 where that norm's ReLU (if
// any) let nothing through, and below_grad_beta and below_grad_gamma, real (outputs,), are written.
// conv, workspace: as above. float16 and bfloat16.
const char* fasthg_conv1x1_bn_grad_cuda(int dtype, const fasthg::Conv1x1* conv,
                                        const fasthg::BatchNorm* norm, const void* z,
                                        const void* grad_beta, const void* grad_gamma,
                                        const fasthg::BatchNorm* below, const void* x,
                                        void* workspace, void* below_grad_beta,
                                        void* below_grad_gamma, int device, void* stream);

// g^T a, the gradient of a convolution's weight: g as above, of grad and z, dtype (norm->rows,
// norm->channels); a is x, dtype (rows, norm_of_x->channels), or its norm as of conv1x1_bn.
// workspace: real (parts, outputs, inputs), products of the rows of each part, at least one row;
// their number alone decides the order of summation. grad_weight: (outputs, inputs), of dtype or,
// wide, float32. float16 and bfloat16.
const char* fasthg_conv1x1_bn_weight_cuda(int dtype, const void* grad,
                                          const fasthg::BatchNorm* norm, const void* z,
                                          const void* grad_beta, const void* grad_gamma,
                                          const fasthg::BatchNorm* norm_of_x, const void* x,
                                          int64_t parts, void* workspace, bool wide,
                                          void* grad_weight, int device, void* stream);

// y = high + low, each value of low for two by two of high; and the gradient with respect to low.
// low: dtype (rows, width, channels), where rows are those of all images; high, y: dtype
// (2 rows, 2 width, channels). CPU: float32, float64, bfloat16. CUDA: also float16.
const char* fasthg_upsample2x_add_cpu(int dtype, const void* low, const void* high, int64_t rows,
                                      int64_t width, int64_t channels, void* y, int threads);
const char* fasthg_upsample2x_add_cuda(int dtype, const void* low, const void* high, int64_t rows,
                                       int64_t width, int64_t channels, void* y, int device,
                                       void* stream);
const char* fasthg_upsample2x_add_backward_cpu(int dtype, const void* grad_y, int64_t rows,
                                               int64_t width, int64_t channels, void* grad_low,
                                               int threads);
const char* fasthg_upsample2x_add_backward_cuda(int dtype, const void* grad_y, int64_t rows,
                                                int64_t width, int64_t channels, void* grad_low,
                                                int device, void* stream);

// The largest of each two by two values and which of the four it was, counted row by row.
// x: dtype (batch, height, width, channels), shape: these four; y: dtype, index: uint8, both
// (batch, height / 2, width / 2, channels), rounded down. The backward writes all of grad_x, 0
// where nothing was passed on, plus addend: as grad_x, or null, then nothing is added. CPU:
// float32, float64, bfloat16. CUDA: also float16.
const char* fasthg_max_pool2x_cpu(int dtype, const void* x, const int64_t shape[4], void* y,
                                  uint8_t* index, int threads);
const char* fasthg_max_pool2x_cuda(int dtype, const void* x, const int64_t shape[4], void* y,
                                   uint8_t* index, int device, void* stream);
const char* fasthg_max_pool2x_backward_cpu(int dtype, const void* grad_y, const uint8_t* index,
                                           const void* addend, const int64_t shape[4], void* grad_x,
                                           int threads);
const char* fasthg_max_pool2x_backward_cuda(int dtype, const void* grad_y, const uint8_t* index,
                                            const void* addend, const int64_t shape[4],
                                            void* grad_x, int device, void* stream);

// y = relu?(x * weight + bias), 3x3 taps, stride 1, padding 1. x: dtype (batch, height, width, in),
// shape: these four; weight: dtype (outputs, in, 3, 3), `strides` elements apart (negative ones
// turn it round, for the gradient of x); bias (or null): dtype (outputs,); y: dtype (batch, height,
// width, outputs); workspace: dtype (36, outputs, in), both rounded up to 16. float32.
const char* fasthg_conv3x3_cpu(int dtype, const void* x, const int64_t shape[4], const void* weight,
                               int64_t outputs, const int64_t strides[4], const void* bias,
                               bool relu, void* workspace, void* y, int threads);

// The gradient of weight. grad_y: as y; workspace: as above for each part of the tiles; their
// number alone decides the order of summation. float32.
const char* fasthg_conv3x3_weight_backward_cpu(int dtype, const void* x, const int64_t shape[4],
                                               const void* grad_y, int64_t outputs, int64_t parts,
                                               void* workspace, void* grad_weight,
                                               const int64_t strides[4], int threads);

// RMSProp and moving averages in place, in one pass; see RmspropStep. float32 and float64.
const char* fasthg_rmsprop_ema_cpu(int dtype, const fasthg::RmspropStep* step, int threads);
const char* fasthg_rmsprop_ema_cuda(int dtype, const fasthg::RmspropStep* step, int device,
                                    void* stream);

// running += weight * (correction * batch - running). running, batch, correction: dtype (count,);
// weight: dtype (1,), on the device. float32 and float64.
const char* fasthg_moving_statistics_cpu(int dtype, void* running, const void* batch,
                                         const void* correction, const void* weight, int64_t count,
                                         int threads);
const char* fasthg_moving_statistics_cuda(int dtype, void* running, const void* batch,
                                          const void* correction, const void* weight, int64_t count,
                                          int device, void* stream);

// Null if the CUDA runtime in this library works with the driver, else what it says.
const char* fasthg_cuda_problem();

}  // extern "C"
