"""One trial without Ray: `torchrun --nproc-per-node 2 -m fabric.train JOB --arm A`, or `python -m fabric.train JOB`."""

from __future__ import annotations

import argparse
import os
import sys

NUMBERS = ("RANK", "WORLD_SIZE", "MASTER_PORT")


def main() -> int:
    """Train one arm with one seed on the ranks torchrun started; 0 when it is finished, 2 for a mistake in the job."""
    parser = argparse.ArgumentParser(prog="python -m fabric.train", description=__doc__)
    parser.add_argument("job", help="the job file")
    parser.add_argument("--arm", help="an arm's name, of any phase (default: the base)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", help="one of the job's scales")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="PATH=VALUE")
    parser.add_argument("--out", default="runs", help="shared by all ranks")
    options = parser.parse_args()

    import torch

    from fabric.running import one_line, run
    from fabric.train.group import Group

    try:
        is_started = _is_started()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if is_started:
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    group = Group.here() if is_started else None
    leads = group is None or group.leads
    if group is not None:
        group.gathered(None)  # one that ended while others still connect would look like a broken network
    try:
        final = run(
            options.job,
            arm=options.arm,
            seed=options.seed,
            scale=options.scale,
            overrides=options.overrides,
            out=options.out,
            on_row=lambda row: print(one_line(row), flush=True),
            group=group,
        )
    except (ValueError, OSError) as error:
        if leads:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        if is_started:
            torch.distributed.destroy_process_group()
    if leads:
        print(f"{final['id']} {final['state']}: val_loss {final['val_loss']}")
    return 0 if final["state"] == "finished" else 1


def _is_started() -> bool:
    """Whether torchrun (or the like) started this process as a rank. Raises ValueError for half of its variables."""
    given = {name: os.environ[name] for name in (*NUMBERS, "MASTER_ADDR") if name in os.environ}
    if not {"RANK", "WORLD_SIZE"} & set(given):
        return False
    if missing := [name for name in (*NUMBERS, "MASTER_ADDR") if name not in given]:
        raise ValueError(
            f"the environment has {', '.join(given)}, but not {', '.join(missing)}: start the ranks with torchrun, or "
            "unset them for one process"
        )
    for name in NUMBERS:
        if not given[name].isdecimal():
            raise ValueError(f"{name}={given[name]!r} in the environment is no number; torchrun sets it")
    return True


if __name__ == "__main__":
    sys.exit(main())
