"""`python -m benchmarks`: the same as `streamfold bench`."""

from benchmarks.command import bench

bench(prog_name="python -m benchmarks")
