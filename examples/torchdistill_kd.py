"""torchdistill: the teacher of the YAML file has a lens; this is the usual loop of its examples."""

from pathlib import Path

import torch
from tiny import dataset
from torchdistill.common.main_util import import_dependencies
from torchdistill.common.yaml_util import load_yaml_file
from torchdistill.core.distillation import get_distillation_box
from torchdistill.models.registry import get_model

torch.manual_seed(0)
config = load_yaml_file(str(Path(__file__).with_suffix(".yaml")))
import_dependencies(config["dependencies"])
teacher, student = (
    get_model(model["key"], **model["kwargs"])
    for model in (config["models"]["teacher_model"], config["models"]["student_model"])
)
box = get_distillation_box(
    teacher,
    student,
    {"train": dataset()},
    config["train"],
    device=torch.device("cpu"),
    device_ids=None,
    distributed=False,
    lr_factor=1,
)
for epoch in range(box.num_epochs):
    box.pre_epoch_process(epoch=epoch)
    for image, label, supplement in box.train_data_loader:
        box.pre_forward_process()
        loss = box.forward_process(image, label, supplement)
        box.post_forward_process(loss)
    box.post_epoch_process()
print(f"lens {teacher.djip_id}, loss {loss.item():.3f}")
