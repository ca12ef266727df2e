from .avagrad import AvaGrad as AvaGrad

__version__: str
