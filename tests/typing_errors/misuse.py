"""What mypy has to refuse; the code of each expected error stands in the comment on its line."""

import zmq
from camera_client import CameraClient, Stage, double_exposure

context = zmq.Context[zmq.Socket[bytes]]()
camera = CameraClient(context, "tcp://127.0.0.1:9000")
camera.exposure = "long"  # error: assignment
camera.resolution = (1, 2, 3)  # error: assignment
exposed: str = camera.exposure  # error: assignment
camera.describe_picture("first")  # error: arg-type
camera.describe_picture()  # error: call-arg
names: list[int] = camera.list_pictures()  # error: assignment
camera.exposure_changed.connect(3)  # error: arg-type
camera.exposure_changed = None  # error: assignment
double_exposure(3)  # error: arg-type

stage = Stage()
stage.position = "far"  # error: assignment
stage.home(3)  # error: arg-type
stage.trace(1)  # error: call-arg
stage.no_such_member  # error: attr-defined
