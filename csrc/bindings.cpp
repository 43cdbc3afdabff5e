// Python bindings of the launchers in ops.h.
//
// Tensors come as addresses, arrays as tuples of four numbers, structs as objects built by keyword.
// A call releases the GIL, since launchers start threads or queue kernels, and raises RuntimeError
// where the launcher refuses. Pure pass-through: every check of shapes and dtypes is the wrapper's.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <utility>

#include "ops.h"

namespace py = pybind11;

namespace {

// What Python passes for a C++ type, and how it becomes one.
template <typename T>
struct FromPython {
  using type = T;
  static T convert(T value) { return value; }
};
template <typename T>
struct FromPython<T*> {
  using type = uintptr_t;
  static T* convert(uintptr_t address) { return reinterpret_cast<T*>(address); }
};
template <>
struct FromPython<const int64_t*> {
  using type = const std::array<int64_t, 4>&;
  static const int64_t* convert(type four) { return four.data(); }
};
#define FASTHG_STRUCT(S)                                             \
  template <>                                                        \
  struct FromPython<const fasthg::S*> {                              \
    using type = const fasthg::S&;                                   \
    static const fasthg::S* convert(type object) { return &object; } \
  };
FASTHG_STRUCT(Targets)
FASTHG_STRUCT(BatchNorm)
FASTHG_STRUCT(Conv1x1)
FASTHG_STRUCT(RmspropStep)
#undef FASTHG_STRUCT

template <auto launcher>
struct Call;
template <typename... A, const char* (*launcher)(A...)>
struct Call<launcher> {
  static void run(typename FromPython<A>::type... arguments) {
    const char* refusal;
    {
      const py::gil_scoped_release release;
      refusal = launcher(FromPython<A>::convert(arguments)...);
    }
    if (refusal) throw std::runtime_error(refusal);
  }
};

// A class whose constructor takes every member of S by keyword, and nothing else. Local to this
// module, because the tests load a second build of it into one process.
template <typename S, typename... T>
void bind_struct(py::module_& m, const char* name, std::pair<const char*, T S::*>... members) {
  py::class_<S>(m, name, py::module_local())
      .def(py::init([members...](typename FromPython<T>::type... values) {
             S object{};
             ((object.*members.second = FromPython<T>::convert(values)), ...);
             return object;
           }),
           py::kw_only(), py::arg(members.first)...);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  using namespace fasthg;
  m.doc() = "Compiled kernels of fasthg; use them through fasthg.ops.";
  m.attr("version") = FASTHG_VERSION;
  m.attr("source_hash") = FASTHG_SOURCE_HASH;
  m.attr("compiler") = FASTHG_COMPILER " " __VERSION__;
  m.attr("cuda_note") = FASTHG_CUDA_NOTE;

  // Keywords are the members' names, but for `in`, which Python reserves.
#define MEMBER(name) std::pair(#name, &S::name)
  {
    using S = Targets;
    bind_struct(m, "Targets", MEMBER(keypoints), MEMBER(sigmas), MEMBER(visibility),
                MEMBER(sigma_stride), MEMBER(batch), MEMBER(parts), MEMBER(height), MEMBER(width),
                MEMBER(subpixel));
  }
  {
    using S = BatchNorm;
    bind_struct(m, "BatchNorm", MEMBER(beta), MEMBER(gamma), MEMBER(mean), MEMBER(var),
                MEMBER(workspace), MEMBER(rows), MEMBER(channels), MEMBER(parts), MEMBER(eps),
                MEMBER(relu), MEMBER(frozen), MEMBER(sums_given), MEMBER(on_chip),
                MEMBER(cluster_blocks), MEMBER(cluster_vectors));
  }
  {
    using S = Conv1x1;
    bind_struct(m, "Conv1x1", MEMBER(x), MEMBER(weight), MEMBER(x2), MEMBER(weight2), MEMBER(bias),
                MEMBER(residual), MEMBER(y), MEMBER(rows), std::pair("in_", &S::in), MEMBER(in2),
                MEMBER(outputs), MEMBER(pitch), MEMBER(pitch2), MEMBER(transposed),
                MEMBER(transposed2), MEMBER(wide), MEMBER(wide2), MEMBER(relu));
  }
  {
    using S = RmspropStep;
    bind_struct(m, "RmspropStep", MEMBER(values), MEMBER(gradient), MEMBER(squares),
                MEMBER(momenta), MEMBER(averages), MEMBER(rate), MEMBER(average_weight),
                MEMBER(found_inf), MEMBER(total), MEMBER(weights), MEMBER(decayed),
                MEMBER(weight_decay), MEMBER(decay), MEMBER(momentum), MEMBER(eps));
  }

#define LAUNCHER(name) m.def(#name, &Call<fasthg_##name>::run)
  LAUNCHER(gaussian_heatmaps_cpu);
  LAUNCHER(heatmap_mse_cpu);
  LAUNCHER(heatmap_mse_backward_cpu);
  LAUNCHER(heatmap_peaks_cpu);
  LAUNCHER(bn_act_cpu);
  LAUNCHER(bn_act_backward_cpu);
  LAUNCHER(rmsprop_ema_cpu);
  LAUNCHER(moving_statistics_cpu);
  LAUNCHER(upsample2x_add_cpu);
  LAUNCHER(upsample2x_add_backward_cpu);
  LAUNCHER(max_pool2x_cpu);
  LAUNCHER(max_pool2x_backward_cpu);
  LAUNCHER(conv3x3_cpu);
  LAUNCHER(conv3x3_weight_backward_cpu);

#ifdef FASTHG_CUDA
  m.attr("cuda") = true;
  m.def("cuda_problem", &fasthg_cuda_problem);
  LAUNCHER(gaussian_heatmaps_cuda);
  LAUNCHER(heatmap_mse_cuda);
  LAUNCHER(heatmap_mse_backward_cuda);
  LAUNCHER(heatmap_peaks_cuda);
  LAUNCHER(bn_act_cuda);
  LAUNCHER(bn_act_backward_cuda);
  m.def("bn_act_clusters_cuda", &fasthg_bn_act_clusters_cuda);
  LAUNCHER(conv1x1_act_cuda);
  LAUNCHER(conv1x1_bn_cuda);
  LAUNCHER(conv1x1_bn_grad_cuda);
  LAUNCHER(conv1x1_bn_weight_cuda);
  LAUNCHER(rmsprop_ema_cuda);
  LAUNCHER(moving_statistics_cuda);
  LAUNCHER(upsample2x_add_cuda);
  LAUNCHER(upsample2x_add_backward_cuda);
  LAUNCHER(max_pool2x_cuda);
  LAUNCHER(max_pool2x_backward_cuda);
#else
  m.attr("cuda") = false;
#endif
}
