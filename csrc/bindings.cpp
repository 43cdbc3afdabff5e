// Python's door to the launchers: pointers as integers, GIL released, a refusal as an exception.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>

#include "ops.h"

namespace py = pybind11;
using fasthg::BatchNorm;
using fasthg::BnFold;
using fasthg::Conv1x1;
using fasthg::RmspropStep;
using fasthg::Targets;

namespace {

using Pointer = uintptr_t;
using Four = std::array<int64_t, 4>;

void* ptr(Pointer address) {
  return reinterpret_cast<void*>(address);
}

uint8_t* bytes(Pointer address) {
  return static_cast<uint8_t*>(ptr(address));
}

// Launchers start threads or queue kernels; neither needs the interpreter.
template <typename Launch>
void call(const Launch& launch) {
  const char* refusal;
  {
    py::gil_scoped_release release;
    refusal = launch();
  }
  if (refusal) throw std::runtime_error(refusal);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of fasthg; use them through fasthg.ops.";
  m.attr("version") = FASTHG_VERSION;
  m.attr("compiler") = FASTHG_COMPILER " " __VERSION__;
  m.attr("cuda_note") = FASTHG_CUDA_NOTE;

  py::class_<Targets>(m, "Targets")
      .def(py::init([](Pointer keypoints, Pointer sigmas, Pointer visibility, int64_t sigma_stride,
                       int batch, int parts, int height, int width, bool subpixel) {
             return Targets{ptr(keypoints), ptr(sigmas), bytes(visibility),
                            sigma_stride,   batch,       parts,
                            height,         width,       subpixel};
           }),
           py::kw_only(), py::arg("keypoints"), py::arg("sigmas"), py::arg("visibility"),
           py::arg("sigma_stride"), py::arg("batch"), py::arg("parts"), py::arg("height"),
           py::arg("width"), py::arg("subpixel"));

  py::class_<BatchNorm>(m, "BatchNorm")
      .def(py::init([](Pointer beta, Pointer gamma, Pointer mean, Pointer var, Pointer workspace,
                       int64_t rows, int64_t channels, int64_t parts, double eps, bool relu,
                       bool frozen, bool on_chip) {
             return BatchNorm{ptr(beta), ptr(gamma), ptr(mean), ptr(var), ptr(workspace), rows,
                              channels,  parts,      eps,       relu,     frozen,         on_chip};
           }),
           py::kw_only(), py::arg("beta"), py::arg("gamma"), py::arg("mean"), py::arg("var"),
           py::arg("workspace"), py::arg("rows"), py::arg("channels"), py::arg("parts"),
           py::arg("eps"), py::arg("relu"), py::arg("frozen"), py::arg("on_chip"));

  py::class_<BnFold>(m, "BnFold")
      .def(py::init([](Pointer weight, Pointer mean, Pointer covariance, Pointer mean_out,
                       Pointer var_out, int64_t outputs, int64_t inputs, double eps,
                       int folded_dtype) {
             return BnFold{ptr(weight),   ptr(mean),    ptr(covariance),
                           ptr(mean_out), ptr(var_out), outputs,
                           inputs,        eps,          folded_dtype};
           }),
           py::kw_only(), py::arg("weight"), py::arg("mean"), py::arg("covariance"),
           py::arg("mean_out"), py::arg("var_out"), py::arg("outputs"), py::arg("inputs"),
           py::arg("eps"), py::arg("folded_dtype"));

  py::class_<Conv1x1>(m, "Conv1x1")
      .def(py::init([](Pointer x, Pointer weight, Pointer x2, Pointer weight2, Pointer bias,
                       Pointer residual, Pointer y, int64_t rows, int64_t in, int64_t in2,
                       int64_t outputs, bool relu) {
             return Conv1x1{ptr(x), ptr(weight), ptr(x2), ptr(weight2), ptr(bias), ptr(residual),
                            ptr(y), rows,        in,      in2,          outputs,   relu};
           }),
           py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("x2"), py::arg("weight2"),
           py::arg("bias"), py::arg("residual"), py::arg("y"), py::arg("rows"), py::arg("in_"),
           py::arg("in2"), py::arg("outputs"), py::arg("relu"));

  py::class_<RmspropStep>(m, "RmspropStep")
      .def(py::init([](Pointer values, Pointer gradient, Pointer squares, Pointer momenta,
                       Pointer averages, Pointer bfloat16, Pointer rate, Pointer average_weight,
                       Pointer found_inf, int64_t total, int64_t weights, int64_t decayed,
                       double weight_decay, double decay, double momentum, double eps) {
             return RmspropStep{ptr(values),
                                ptr(gradient),
                                ptr(squares),
                                ptr(momenta),
                                ptr(averages),
                                static_cast<uint16_t*>(ptr(bfloat16)),
                                ptr(rate),
                                ptr(average_weight),
                                static_cast<const float*>(ptr(found_inf)),
                                total,
                                weights,
                                decayed,
                                weight_decay,
                                decay,
                                momentum,
                                eps};
           }),
           py::kw_only(), py::arg("values"), py::arg("gradient"), py::arg("squares"),
           py::arg("momenta"), py::arg("averages"), py::arg("bfloat16"), py::arg("rate"),
           py::arg("average_weight"), py::arg("found_inf"), py::arg("total"), py::arg("weights"),
           py::arg("decayed"), py::arg("weight_decay"), py::arg("decay"), py::arg("momentum"),
           py::arg("eps"));

  m.def("gaussian_heatmaps_cpu", [](int dtype, const Targets& targets, Pointer heatmaps,
                                    bool channels_last, int threads) {
    call([&] {
      return fasthg_gaussian_heatmaps_cpu(dtype, &targets, ptr(heatmaps), channels_last, threads);
    });
  });
  m.def("heatmap_mse_cpu",
        [](int dtype, const Targets& targets, int stacks, Pointer predictions, int64_t stack_stride,
           int64_t batch_stride, bool channels_last, Pointer loss, int threads) {
          call([&] {
            return fasthg_heatmap_mse_cpu(dtype, &targets, stacks, ptr(predictions), stack_stride,
                                          batch_stride, channels_last, ptr(loss), threads);
          });
        });
  m.def("heatmap_mse_backward_cpu",
        [](int dtype, const Targets& targets, int stacks, Pointer predictions, int64_t stack_stride,
           int64_t batch_stride, bool channels_last, Pointer grad_loss, Pointer gradient,
           int threads) {
          call([&] {
            return fasthg_heatmap_mse_backward_cpu(dtype, &targets, stacks, ptr(predictions),
                                                   stack_stride, batch_stride, channels_last,
                                                   ptr(grad_loss), ptr(gradient), threads);
          });
        });
  m.def("heatmap_peaks_cpu", [](int dtype, Pointer heatmaps, const Four& strides, const Four& shape,
                                int method, Pointer xy, Pointer score, int threads) {
    call([&] {
      return fasthg_heatmap_peaks_cpu(dtype, ptr(heatmaps), strides.data(), shape.data(), method,
                                      ptr(xy), ptr(score), threads);
    });
  });
  m.def("bn_act_cpu", [](int dtype, const BatchNorm& norm, Pointer x, Pointer residual, Pointer y,
                         int threads) {
    call([&] { return fasthg_bn_act_cpu(dtype, &norm, ptr(x), ptr(residual), ptr(y), threads); });
  });
  m.def("bn_act_backward_cpu",
        [](int dtype, const BatchNorm& norm, Pointer x, Pointer y, Pointer grad_y, Pointer grad_x,
           Pointer grad_residual, Pointer grad_beta, Pointer grad_gamma, int threads) {
          call([&] {
            return fasthg_bn_act_backward_cpu(dtype, &norm, ptr(x), ptr(y), ptr(grad_y),
                                              ptr(grad_x), ptr(grad_residual), ptr(grad_beta),
                                              ptr(grad_gamma), threads);
          });
        });
  m.def("channel_covariance_cpu", [](int dtype, Pointer x, int64_t rows, int64_t channels,
                                     int64_t parts, Pointer workspace, Pointer mean,
                                     Pointer covariance, int threads) {
    call([&] {
      return fasthg_channel_covariance_cpu(dtype, ptr(x), rows, channels, parts, ptr(workspace),
                                           ptr(mean), ptr(covariance), threads);
    });
  });
  m.def("rmsprop_ema_cpu", [](int dtype, const RmspropStep& step, int threads) {
    call([&] { return fasthg_rmsprop_ema_cpu(dtype, &step, threads); });
  });
  m.def("moving_statistics_cpu", [](int dtype, Pointer running, Pointer batch, Pointer correction,
                                    Pointer weight, int64_t count, int threads) {
    call([&] {
      return fasthg_moving_statistics_cpu(dtype, ptr(running), ptr(batch), ptr(correction),
                                          ptr(weight), count, threads);
    });
  });
  m.def("upsample2x_add_cpu", [](int dtype, Pointer low, Pointer high, int64_t rows, int64_t width,
                                 int64_t channels, Pointer y, int threads) {
    call([&] {
      return fasthg_upsample2x_add_cpu(dtype, ptr(low), ptr(high), rows, width, channels, ptr(y),
                                       threads);
    });
  });
  m.def("upsample2x_add_backward_cpu", [](int dtype, Pointer grad_y, int64_t rows, int64_t width,
                                          int64_t channels, Pointer grad_low, int threads) {
    call([&] {
      return fasthg_upsample2x_add_backward_cpu(dtype, ptr(grad_y), rows, width, channels,
                                                ptr(grad_low), threads);
    });
  });
  m.def("max_pool2x_cpu", [](int dtype, Pointer x, const Four& shape, Pointer y, Pointer index,
                             int threads) {
    call([&] {
      return fasthg_max_pool2x_cpu(dtype, ptr(x), shape.data(), ptr(y), bytes(index), threads);
    });
  });
  m.def("max_pool2x_backward_cpu", [](int dtype, Pointer grad_y, Pointer index, const Four& shape,
                                      Pointer grad_x, int threads) {
    call([&] {
      return fasthg_max_pool2x_backward_cpu(dtype, ptr(grad_y), bytes(index), shape.data(),
                                            ptr(grad_x), threads);
    });
  });
  m.def("conv3x3_cpu", [](int dtype, Pointer x, const Four& shape, Pointer weight, int64_t outputs,
                          const Four& strides, Pointer bias, bool relu, Pointer workspace,
                          Pointer y, int threads) {
    call([&] {
      return fasthg_conv3x3_cpu(dtype, ptr(x), shape.data(), ptr(weight), outputs, strides.data(),
                                ptr(bias), relu, ptr(workspace), ptr(y), threads);
    });
  });
  m.def("conv3x3_weight_backward_cpu",
        [](int dtype, Pointer x, const Four& shape, Pointer grad_y, int64_t outputs, int64_t parts,
           Pointer workspace, Pointer grad_weight, const Four& strides, int threads) {
          call([&] {
            return fasthg_conv3x3_weight_backward_cpu(dtype, ptr(x), shape.data(), ptr(grad_y),
                                                      outputs, parts, ptr(workspace),
                                                      ptr(grad_weight), strides.data(), threads);
          });
        });

#ifdef FASTHG_CUDA
  m.attr("cuda") = true;
  m.def("cuda_problem", &fasthg_cuda_problem);
  m.def("gaussian_heatmaps_cuda", [](int dtype, const Targets& targets, Pointer heatmaps,
                                     bool channels_last, int device, Pointer stream) {
    call([&] {
      return fasthg_gaussian_heatmaps_cuda(dtype, &targets, ptr(heatmaps), channels_last, device,
                                           ptr(stream));
    });
  });
  m.def("heatmap_mse_cuda", [](int dtype, const Targets& targets, int stacks, Pointer predictions,
                               int64_t stack_stride, int64_t batch_stride, bool channels_last,
                               Pointer loss, int device, Pointer stream) {
    call([&] {
      return fasthg_heatmap_mse_cuda(dtype, &targets, stacks, ptr(predictions), stack_stride,
                                     batch_stride, channels_last, ptr(loss), device, ptr(stream));
    });
  });
  m.def("heatmap_mse_backward_cuda", [](int dtype, const Targets& targets, int stacks,
                                        Pointer predictions, int64_t stack_stride,
                                        int64_t batch_stride, bool channels_last, Pointer grad_loss,
                                        Pointer gradient, int device, Pointer stream) {
    call([&] {
      return fasthg_heatmap_mse_backward_cuda(dtype, &targets, stacks, ptr(predictions),
                                              stack_stride, batch_stride, channels_last,
                                              ptr(grad_loss), ptr(gradient), device, ptr(stream));
    });
  });
  m.def("heatmap_peaks_cuda",
        [](int dtype, Pointer heatmaps, const Four& strides, const Four& shape, int method,
           Pointer xy, Pointer score, int device, Pointer stream) {
          call([&] {
            return fasthg_heatmap_peaks_cuda(dtype, ptr(heatmaps), strides.data(), shape.data(),
                                             method, ptr(xy), ptr(score), device, ptr(stream));
          });
        });
  m.def("bn_act_cuda", [](int dtype, const BatchNorm& norm, Pointer x, Pointer residual, Pointer y,
                          int device, Pointer stream) {
    call([&] {
      return fasthg_bn_act_cuda(dtype, &norm, ptr(x), ptr(residual), ptr(y), device, ptr(stream));
    });
  });
  m.def(
      "bn_act_backward_cuda",
      [](int dtype, const BatchNorm& norm, Pointer x, Pointer y, Pointer grad_y, Pointer grad_x,
         Pointer grad_residual, Pointer grad_beta, Pointer grad_gamma, int device, Pointer stream) {
        call([&] {
          return fasthg_bn_act_backward_cuda(dtype, &norm, ptr(x), ptr(y), ptr(grad_y), ptr(grad_x),
                                             ptr(grad_residual), ptr(grad_beta), ptr(grad_gamma),
                                             device, ptr(stream));
        });
      });
  m.def("bn_fold_cuda", [](int dtype, const BnFold& fold, Pointer beta, Pointer folded,
                           Pointer offset, int device, Pointer stream) {
    call([&] {
      return fasthg_bn_fold_cuda(dtype, &fold, ptr(beta), ptr(folded), ptr(offset), device,
                                 ptr(stream));
    });
  });
  m.def("bn_fold_backward_cuda",
        [](int dtype, const BnFold& fold, Pointer product, Pointer total, int64_t rows,
           Pointer workspace, Pointer grad_weight, Pointer back, Pointer mix, Pointer constant,
           int device, Pointer stream) {
          call([&] {
            return fasthg_bn_fold_backward_cuda(dtype, &fold, ptr(product), ptr(total), rows,
                                                ptr(workspace), ptr(grad_weight), ptr(back),
                                                ptr(mix), ptr(constant), device, ptr(stream));
          });
        });
  m.def("channel_covariance_cuda", [](int dtype, Pointer x, int64_t rows, int64_t channels,
                                      int64_t parts, Pointer workspace, Pointer mean,
                                      Pointer covariance, int device, Pointer stream) {
    call([&] {
      return fasthg_channel_covariance_cuda(dtype, ptr(x), rows, channels, parts, ptr(workspace),
                                            ptr(mean), ptr(covariance), device, ptr(stream));
    });
  });
  m.def("conv1x1_act_cuda", [](int dtype, const Conv1x1& conv, int device, Pointer stream) {
    call([&] { return fasthg_conv1x1_act_cuda(dtype, &conv, device, ptr(stream)); });
  });
  m.def("rmsprop_ema_cuda", [](int dtype, const RmspropStep& step, int device, Pointer stream) {
    call([&] { return fasthg_rmsprop_ema_cuda(dtype, &step, device, ptr(stream)); });
  });
  m.def("moving_statistics_cuda", [](int dtype, Pointer running, Pointer batch, Pointer correction,
                                     Pointer weight, int64_t count, int device, Pointer stream) {
    call([&] {
      return fasthg_moving_statistics_cuda(dtype, ptr(running), ptr(batch), ptr(correction),
                                           ptr(weight), count, device, ptr(stream));
    });
  });
  m.def("upsample2x_add_cuda", [](int dtype, Pointer low, Pointer high, int64_t rows, int64_t width,
                                  int64_t channels, Pointer y, int device, Pointer stream) {
    call([&] {
      return fasthg_upsample2x_add_cuda(dtype, ptr(low), ptr(high), rows, width, channels, ptr(y),
                                        device, ptr(stream));
    });
  });
  m.def("upsample2x_add_backward_cuda",
        [](int dtype, Pointer grad_y, int64_t rows, int64_t width, int64_t channels,
           Pointer grad_low, int device, Pointer stream) {
          call([&] {
            return fasthg_upsample2x_add_backward_cuda(dtype, ptr(grad_y), rows, width, channels,
                                                       ptr(grad_low), device, ptr(stream));
          });
        });
  m.def("max_pool2x_cuda", [](int dtype, Pointer x, const Four& shape, Pointer y, Pointer index,
                              int device, Pointer stream) {
    call([&] {
      return fasthg_max_pool2x_cuda(dtype, ptr(x), shape.data(), ptr(y), bytes(index), device,
                                    ptr(stream));
    });
  });
  m.def("max_pool2x_backward_cuda", [](int dtype, Pointer grad_y, Pointer index, const Four& shape,
                                       Pointer grad_x, int device, Pointer stream) {
    call([&] {
      return fasthg_max_pool2x_backward_cuda(dtype, ptr(grad_y), bytes(index), shape.data(),
                                             ptr(grad_x), device, ptr(stream));
    });
  });
#else
  m.attr("cuda") = false;
#endif
}
