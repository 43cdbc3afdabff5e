"""Profiles of the benchmarks: a class for each kernel, and sums by class and stream."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import kernel_profile
import pytest
import torch

AT = "void at::native::"
NAMES = {
    # fasthg
    "void fasthg::(anonymous namespace)::bn_act_grad_x_kernel<__nv_bfloat16, 8>(fasthg::": "norms",
    "void fasthg::(anonymous namespace)::moving_statistics_kernel<float, 4>(float*": "norms",
    "void fasthg::(anonymous namespace)::heatmap_mse_backward_kernel<__nv_bfloat16>": "loss",
    "void fasthg::(anonymous namespace)::rmsprop_ema_kernel<4>(fasthg::RmspropStep)": "optimiser",
    "void fasthg::(anonymous namespace)::upsample2x_add_kernel<float, 4>": "pool and upsample",
    # torch, cuDNN and cuBLAS
    "void cudnn::bn_fw_tr_1C11_kernel_NCHW<__half, float, 512, true>": "norms",
    "void cudnn::batchnorm_bwtr_nhwc_semiPersist<__half, float>": "norms",
    AT + "batch_norm_transform_input_channels_last_kernel<c10::BFloat16>": "norms",
    AT + "vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, s": "gradient adds",
    AT
    + "vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cud": "copies and casts",
    AT + "unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::": "copies and casts",
    AT + "(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::"
    "TensorListMetadata<2>, at::native::(anonymous namespace)::CopyFunctor<float, float, 2, 1, 1>,"
    " at::native::Copy<float, float> >": "copies and casts",
    AT + "(anonymous namespace)::multi_tensor_apply_kernel<at::native::(anonymous namespace)::"
    "TensorListMetadata<3>, at::native::(anonymous namespace)::PointwiseOpListFunctor": "optimiser",
    AT + "max_pool_backward_nhwc<c10::BFloat16, c10::BFloat16>": "pool and upsample",
    AT + "(anonymous namespace)::upsample_nearest2d_nhwc_out_frame<c10::BFlo": "pool and upsample",
    AT + "reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::func_wrapper_t": "other",
    "Memcpy DtoD (Device -> Device)": "copies and casts",
    "Memset (Device)": "copies and casts",
    "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>": "1x1 convolutions",
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64_warpgroup": "1x1 convolutions",
    "void cudnn::winograd_nonfused::winogradForwardData4x4<float, float>": "3x3 convolutions",
    # inductor: named after the operators that it fused
    "triton_red_fused__native_batch_norm_legit_functional_add_relu_3": "norms",
    "triton_poi_fused_max_pool2d_with_indices_7": "pool and upsample",
    "triton_poi_fused__to_copy_12": "copies and casts",
    "triton_poi_fused_add_4": "gradient adds",
    "triton_tem_fused_convolution_5": "3x3 convolutions",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_has_its_class(name: str) -> None:
    assert kernel_profile.classify(name) == NAMES[name]


def test_the_classes_of_a_measured_step_are_those_added_up_by_hand(repository: Path) -> None:
    """8 stacks, batch 32: the 40 longest kernels of a list that a result file keeps as text."""
    file = repository / "benchmarks" / "results" / "nvidia-h200-20261126-f7d988b.json"
    stages = json.loads(file.read_text(encoding="utf-8"))["stages"]
    (output,) = (stage["output"] for stage in stages if stage["name"] == "profile")
    us, launches = Counter(), Counter()
    for times, count, name in re.findall(r"% +(\d+) us +(\d+) x  (.*)", output):
        us[kernel_profile.classify(name)] += int(times)
        launches[kernel_profile.classify(name)] += int(count)
    assert us == {
        "norms": 17129,
        "1x1 convolutions": 2879 + 2864 + 2095 + 598,
        "3x3 convolutions": 3095 + 2926 + 1983,
        "gradient adds": 2356,
        "pool and upsample": 1234,
    }
    assert launches["norms"] == 1560 and launches["gradient adds"] == 168


def test_times_add_up_by_class_and_stream() -> None:
    kernel = "void at::native::CUDAFunctor_add<float>"
    events = [
        *((kernel, 7, 10.0, 100.0), (kernel, 7, 10.0, 110.0)),
        ("bn_act_result_kernel", 13, 15.0, 105.0),  # beside both
        ("bn_act_result_kernel", 7, 5.0, 200.0),
    ]
    profile = kernel_profile.summarise(events)
    assert profile["launches"] == 4
    assert profile["ms of kernels"] == 0.04 and profile["ms busy"] == 0.025
    assert profile["classes"] == {
        "norms": {"launches": 2, "us": 20.0},
        "gradient adds": {"launches": 2, "us": 20.0},
    }
    assert profile["streams"] == {
        "0": {"launches": 3, "us": 25.0},
        "1": {"launches": 1, "us": 15.0},
    }
    assert profile["kernels"] == [
        {"class": "gradient adds", "stream": 0, "name": kernel, "launches": 2, "us": 20.0},
        *(
            {"class": "norms", "stream": n, "name": "bn_act_result_kernel", "launches": 1, "us": us}
            for n, us in ((1, 15.0), (0, 5.0))
        ),
    ]
    assert json.loads(json.dumps(profile)) == profile


@pytest.mark.slow
def test_a_call_is_recorded_on_a_cpu() -> None:
    x = torch.randn(8, 8)
    profile = kernel_profile.record(lambda: (x @ x).relu(), torch.device("cpu"))
    assert {"aten::mm", "aten::clamp_min"} <= {row["name"] for row in profile["kernels"]}
    total = sum(row["us"] for row in profile["kernels"])
    assert total > 0 and profile["ms of kernels"] * 1e3 == pytest.approx(total, abs=2)
