"""Bundle -> a model repository of Triton Inference Server: what ``vaedeploy triton`` does.

    write_triton("mse840k", "models")  # models/mse840k-encode, models/mse840k-decode

``repository`` writes it; ``config`` has the models' configurations.
"""

from __future__ import annotations

from vaedeploy.pipeline.triton.repository import write_triton

__all__ = ["write_triton"]
