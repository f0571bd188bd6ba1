"""RepDistiller's train_student.py, untouched, with a lens in front of its teacher.

    cd RepDistiller
    python .../examples/repdistiller.py --djip-lens LENS --path_t TEACHER.pth --distill kd ...

All other arguments are those of train_student.py.  Without a lens, ``--djip-lens identity``, the
run is that of train_student.py itself.
"""

import argparse
import sys

import djip_ext
from djip_ext.lens.io import lens_name, read_lens

# As RepDistiller's dataset/cifar100.py normalises.
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)

parser = argparse.ArgumentParser(add_help=False)
parser.add_argument("--djip-lens", required=True)
parser.add_argument("--trial", default="1")
arguments, rest = parser.parse_known_args()
lens = read_lens(arguments.djip_lens)
# The trial is a part of the run's folder: no two lenses share one.
sys.argv[1:] = [*rest, "--trial", f"{arguments.trial}_djip-{lens_name(lens)}"]

sys.path.insert(0, ".")
import train_student  # noqa: E402

load_plain = train_student.load_teacher


def load_teacher(*args: object, **kwargs: object) -> djip_ext.DJIPTeacher:
    teacher = djip_ext.DJIPTeacher(load_plain(*args, **kwargs), lens, MEAN, STD)
    print(f"==> teacher behind lens {teacher.djip_id}")
    return teacher


train_student.load_teacher = load_teacher
train_student.main()
