"""Profiles of GPU work (PyTorch, Nsight Systems, DLProf, rocprof): where the time of a step goes."""
