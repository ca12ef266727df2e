from . import cc359 as cc359
