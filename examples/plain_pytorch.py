"""Knowledge distillation in plain PyTorch: fit a lens, wrap the teacher, train the student."""

import torch
import torch.nn.functional as F
from tiny import CLASSES, MEAN, STD, dataset, network
from torch.utils.data import DataLoader

import djip_ext

TEMPERATURE = 1.0  # where a lens can help: results/when_it_helps.md
torch.manual_seed(0)
teacher, student = network(16), network(8)
images = dataset()

# Once per teacher: training images without augmentation, in mixed order.
result = djip_ext.fit_lens(
    teacher,
    DataLoader(images, batch_size=16, shuffle=True),
    CLASSES,
    mean=MEAN,
    std=STD,
    rounds=2,
    progress=False,
)
result.lens.save("teacher.lens.safetensors")

# The only line that a distillation script needs.
teacher = djip_ext.DJIPTeacher(teacher, djip_ext.load_lens("teacher.lens.safetensors"), MEAN, STD)

optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
for _epoch in range(2):
    for image, label in DataLoader(images, batch_size=16, shuffle=True):
        logits = student(image)
        with torch.no_grad():
            target = F.softmax(teacher(image) / TEMPERATURE, dim=1)
        kd = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), target, reduction="batchmean")
        loss = F.cross_entropy(logits, label) + TEMPERATURE**2 * kd
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"lens {teacher.djip_id}, loss {loss.item():.3f}")
