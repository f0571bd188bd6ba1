"""timm: a teacher behind its lens in timm's LogitDistillationTask."""

import timm
import torch
from timm.task import LogitDistillationTask
from tiny import CLASSES, dataset, lens
from torch import nn
from torch.utils.data import DataLoader

import djip_ext

torch.manual_seed(0)
# Yours: pretrained=True; the smallest networks of timm keep this example offline.
teacher = timm.create_model("test_resnet.r160_in1k", num_classes=CLASSES)
student = timm.create_model("test_efficientnet.r160_in1k", num_classes=CLASSES)

# timm's data loaders normalise as the student expects; the task normalises anew for the teacher.
scale = teacher.pretrained_cfg
teacher = djip_ext.DJIPTeacher(teacher, lens(), scale["mean"], scale["std"])
task = LogitDistillationTask(
    student,
    teacher,
    criterion=nn.CrossEntropyLoss(),
    task_loss_weight=0.3,
    temperature=1.0,  # where a lens can help: results/when_it_helps.md
    device=torch.device("cpu"),
    dtype=torch.float32,
    verbose=False,
)

optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
for image, label in DataLoader(dataset(), batch_size=16, shuffle=True):
    losses = task(image, label)
    optimizer.zero_grad()
    losses["loss"].backward()
    optimizer.step()
print(f"lens {teacher.djip_id}, loss {losses['loss'].item():.3f}")
