"""The method itself, as pure functions of arrays: noise levels, flow, losses, distillation, trajectories, sampler."""
