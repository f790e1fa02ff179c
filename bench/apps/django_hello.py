"""Hello world in Django without middleware, over WSGI and ASGI; /shop/… takes two numbers of the
path."""

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="only for a benchmark")


def index(request):
    return HttpResponse("Hello, world!")


def item(request, shop, item):
    return HttpResponse("Hello, world!")


urlpatterns = [path("", index), path("shop/<int:shop>/items/<int:item>", item)]

wsgi = get_wsgi_application()
asgi = get_asgi_application()
