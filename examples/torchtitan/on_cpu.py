"""Run torchtitan's trainer without a GPU, which it does not support: python on_cpu.py OPTIONS

It stands in for the GPU: torchtitan asks two variables for its device, and a few questions about memory.
"""

import os
import runpy
import sys
from types import SimpleNamespace

import torch

os.environ.setdefault("RANK", "0")
os.environ.setdefault("LOCAL_RANK", "0")
os.environ.setdefault("WORLD_SIZE", "1")
os.environ.setdefault("MASTER_ADDR", "localhost")
os.environ.setdefault("MASTER_PORT", "29500")


class Cpu:
    device_count = staticmethod(lambda: int(os.environ["WORLD_SIZE"]))
    current_device = staticmethod(lambda: 0)
    set_device = synchronize = empty_cache = staticmethod(lambda *_: None)
    reset_peak_memory_stats = staticmethod(lambda *_: None)
    get_device_name = staticmethod(lambda *_: "CPU")
    get_device_properties = staticmethod(lambda *_: SimpleNamespace(total_memory=1 << 34))
    memory_stats = staticmethod(lambda *_: {})


torch._utils._get_available_device_type = lambda: "cpu"
torch._utils._get_device_module = lambda device_type: Cpu
if not hasattr(torch.distributed, "set_timeout"):  # torchtitan 0.3 is made for torch 2.14
    torch.distributed.set_timeout = torch.distributed.distributed_c10d._set_pg_timeout
sys.path.insert(0, os.path.dirname(__file__))
runpy.run_module("torchtitan.train", run_name="__main__", alter_sys=True)
