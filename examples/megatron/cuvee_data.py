"""What a user of Megatron-LM adds, so that pretrain_gpt.py reads a mixture of cuvee's domains.

In pretrain_gpt.py, instead of its own train_valid_test_datasets_provider:

    from cuvee_data import train_valid_test_datasets_provider

Run it with --dataloader-type external --no-create-attention-mask-in-dataloader. $CORPUS is the folder of
the corpus, and $MIXTURE a JSON object with the share of each domain.
"""

import json
import os

from megatron.core import mpu
from megatron.training import get_args
from torch.utils.data import DataLoader

from cuvee import Mixture, MixtureStream
from cuvee.data.corpus.corpus import Corpus
from cuvee.integrations.lane_rows import LaneRows
from cuvee.integrations.megatron import LaneBatches, gpt_batch


def train_valid_test_datasets_provider(samples, vp_stage=None):
    args = get_args()
    stream = MixtureStream(
        Corpus.open(os.environ["CORPUS"]),
        Mixture.of(json.loads(os.environ["MIXTURE"])),
        batch_size=args.global_batch_size,
        sequence_length=args.seq_length,
        seed=args.seed,
    )
    rows = LaneRows(stream, args.train_iters)
    sizes = {"batch_size": args.global_batch_size, "micro_batch_size": args.micro_batch_size}
    rank, ranks = mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size()
    done = args.consumed_train_samples
    batches = LaneBatches(len(rows), **sizes, rank=rank, ranks=ranks, consumed=done)
    loader = DataLoader(rows, batch_sampler=batches, collate_fn=gpt_batch)
    return iter(loader), None, None
