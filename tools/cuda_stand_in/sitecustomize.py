"""Python runs this when it starts: processes that the tests start have the device too."""

import cuda_stand_in

cuda_stand_in.install()
